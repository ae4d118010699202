"""Real builds of tiny random targets, in this process and in killed ones."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from factory.artifact import Artifact
from factory.building.build import build
from factory.data.scribe import read_shard
from factory.errors import FactoryError, ModelError, RecipeError, UnsupportedModel
from factory.models import loading as models
from factory.recipes.recipe import load

RECIPE = """\
name: tiny
target: {{model: {target}}}
data: {{prompts: bos, written_by: target, samples: 24, max_new_tokens: 16, batch: 8, held_out: 0.2}}
stages:
  - {{kind: drop_layers, keep: 2, score: {score}}}
  - {{kind: distill, epochs: {epochs}, lr: 0.003, batch: 4, checkpoint_every: 5}}
keep_raw: true
seed: 0
"""


def recipe(folder: Path, target: Path, epochs: int = 2, score: str = "block_influence") -> Path:
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(target=target, epochs=epochs, score=score))
    return path


def silent(_done: int, _total: int, _what: str) -> None:
    pass


def weights(artifact: Artifact) -> str:
    return hashlib.sha256((artifact.model_folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_build_makes_a_smaller_trained_drafter_and_leaves_the_target_alone(tiny_folder: Path, tmp_path: Path) -> None:
    before = hashlib.sha256((tiny_folder / "model.safetensors").read_bytes()).hexdigest()
    out = tmp_path / "artifacts"
    drafter, raw = build(load(recipe(tmp_path, tiny_folder, epochs=10), [], None), out, silent)
    assert (drafter.name, raw.name) == ("tiny", "tiny--raw")
    assert hashlib.sha256((tiny_folder / "model.safetensors").read_bytes()).hexdigest() == before
    target = models.load_model(tiny_folder, dtype=torch.float32)
    stock = AutoModelForCausalLM.from_pretrained(drafter.model_folder, dtype=torch.float32)
    assert stock.num_parameters() == drafter.manifest["parameters"] < target.num_parameters()
    assert stock.config.num_hidden_layers == 2 == drafter.manifest["shape"]["layers"]
    assert drafter.manifest["bytes_on_disk"] < (tiny_folder / "model.safetensors").stat().st_size
    assert AutoTokenizer.from_pretrained(drafter.model_folder)("ab")["input_ids"] == [91, 92]
    kept = drafter.manifest["facts"][0]["edit"]["keep_layers"]
    raw_model = models.load_model(raw.model_folder, dtype=torch.float32)
    layers = "model.layers" if target.config.model_type == "llama" else "transformer.h"
    for new, old in enumerate(kept):
        for name, tensor in target.get_submodule(f"{layers}.{old}").state_dict().items():
            assert torch.equal(raw_model.get_submodule(f"{layers}.{new}").state_dict()[name], tensor)
    facts = drafter.manifest["facts"][1]
    assert facts["held_out_after"]["forward_kl"] < facts["held_out_before"]["forward_kl"]
    assert weights(drafter) != weights(raw)
    drafter.verify()
    raw.verify()
    assert (drafter.folder / "recipe.yaml").read_bytes() == (tmp_path / "tiny.yaml").read_bytes()


def test_a_second_build_does_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "artifacts"
    loaded = load(recipe(tmp_path, tiny_folder), [], None)
    first = build(loaded, out, silent)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    said: list[str] = []
    again = build(loaded, out, lambda _d, _t, what: said.append(what))
    assert [a.name for a in again] == [a.name for a in first]
    now = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    assert {p.name for p in stamps if stamps[p] != now.get(p)} <= {"identity.json"}
    assert set(said) == {"reading prompts"}  # not even the target was loaded


def test_a_build_with_nothing_to_do_imports_no_torch(tiny_folder: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, tiny_folder, epochs=1, score="even")
    build(load(path, [], None), tmp_path / "artifacts", silent)
    code = (
        "import sys; from pathlib import Path; from factory.building.build import build; "
        "from factory.recipes.recipe import load; "
        f"made = build(load(Path({str(path)!r})), Path({str(tmp_path / 'artifacts')!r}), lambda *_: None); "
        "print([a.name for a in made], 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "['tiny', 'tiny--raw'] False"


def test_stages_before_the_first_difference_are_used_again(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "artifacts"
    path = recipe(tmp_path, tiny_folder)
    (first, _) = build(load(path, [], None), out, silent)
    stages = {p.name for p in (out / ".cache" / "stages").iterdir()}
    (second, _) = build(load(path, ["stages.1.lr=0.001"], None), out, silent)
    assert weights(first) != weights(second) or first.manifest["digest"] != second.manifest["digest"]
    assert len({p.name for p in (out / ".cache" / "stages").iterdir()} - stages) == 1
    assert "0.001" in (second.folder / "resolved.yaml").read_text()


@pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)
def test_a_killed_build_goes_on_and_ends_byte_identical(tiny_folder: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, tiny_folder, epochs=120)
    undisturbed = build(load(path, [], None), tmp_path / "whole", silent)[0]
    cut = tmp_path / "cut"
    command = [sys.executable, "-m", "factory.cli", "build", str(path), "--out", str(cut)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(cut.glob(".cache/stages/*.working/checkpoint.pt")):
        assert process.poll() is None, "the build ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cut / "tiny").exists()
    checkpoint = torch.load(next(cut.glob(".cache/stages/*.working/checkpoint.pt")), weights_only=True)
    steps: list[tuple[int, int]] = []
    loaded = load(path, [], None)
    resumed = build(
        loaded, cut, lambda done, total, what: steps.append((done, total)) if "distilling" in what else None
    )
    assert steps[0][0] > checkpoint["step"] - 1 >= 4  # it did not begin again
    assert weights(resumed[0]) == weights(undisturbed)


def test_two_builds_in_one_folder_are_kept_apart(tiny_folder: Path, tmp_path: Path) -> None:
    from factory.files.atomic import locked

    out = tmp_path / "artifacts"
    out.mkdir()
    with locked(out), pytest.raises(FactoryError, match=f"another build .process {os.getpid()}. is at work"):
        build(load(recipe(tmp_path, tiny_folder), [], None), out, silent)
    build(load(recipe(tmp_path, tiny_folder, epochs=1, score="even"), [], None), out, silent)


def test_damage_is_never_used_silently(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "artifacts"
    loaded = load(recipe(tmp_path, tiny_folder, epochs=1, score="even"), [], None)
    drafter = build(loaded, out, silent)[0]
    file = drafter.model_folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(FactoryError, match=r"model\.safetensors: damaged"):
        build(loaded, out, silent)


def test_a_target_with_other_weights_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    loaded = load(recipe(tmp_path, tiny_folder, epochs=1, score="even"), [], None)
    drafter = build(loaded, tmp_path / "artifacts", silent)[0]
    drafter.load_target(None, torch.float32, "cpu")
    with pytest.raises(FactoryError, match="are not the same"):
        drafter.load_target(str(drafter.model_folder), torch.float32, "cpu")


def test_what_cannot_be_built_is_said_before_anything_starts(tiny_folder: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "out", recipe(tmp_path, tiny_folder)
    config = json.loads((tiny_folder / "config.json").read_text())
    (tiny_folder / "config.json").write_text(json.dumps({**config, "model_type": "t5"}))
    with pytest.raises(UnsupportedModel, match=rf"^{path}:2: target: model type 't5' is not supported"):
        build(load(path, [], None), out, silent)
    (tiny_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UnsupportedModel, match=r"^--set stages\.0\.keep: drop_layers: keep is 5, the model has 4 layers$"
    ):
        build(load(path, ["stages.0.keep=5"], None), out, silent)
    whole = (tiny_folder / "model.safetensors").read_bytes()
    (tiny_folder / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ModelError, match=r"model\.safetensors: cut short"):
        build(load(path, [], None), out, silent)
    (tiny_folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \.safetensors file"):
        build(load(path, [], None), out, silent)
    assert [entry.name for entry in out.iterdir()] == [".lock"]


@pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)
def test_a_config_of_another_model_is_refused_with_its_line(tiny_folder: Path, tmp_path: Path) -> None:
    path, other = tmp_path / "r.yaml", tmp_path / "other.json"
    path.write_text(
        f"name: r\ntarget:\n  model: {tiny_folder}\n  config: other.json\nstages: [{{kind: drop_layers, keep: 1}}]\n"
    )
    config = json.loads((tiny_folder / "config.json").read_text())
    other.write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(RecipeError, match=rf"^{path}:4: target\.config: its sizes .*: layers 3 instead of 4; remove"):
        build(load(path), tmp_path / "out", silent)
    assert not (tmp_path / "out" / ".cache").exists()
    other.write_text(json.dumps({**config, "dtype": "float16"}))  # what it is stored in may differ
    build(load(path), tmp_path / "out", silent)


def forget_tokens(folder: Path, *keys: str) -> None:
    """Take special tokens out of what a model and its tokenizer say of themselves."""
    for name in ("config.json", "generation_config.json"):
        facts = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**facts, **{f"{key}_token_id": None for key in keys}}))
    facts = json.loads((folder / "tokenizer_config.json").read_text())
    kept = {key: value for key, value in facts.items() if key not in [f"{key}_token" for key in keys]}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))


def test_a_tokenizer_without_pad_and_eos_works_and_no_eos_is_said(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert AutoTokenizer.from_pretrained(tiny_folder).pad_token is None
    path = recipe(tmp_path, tiny_folder, epochs=1, score="even")
    build(load(path, [], None), tmp_path / "with", silent)
    assert caplog.messages == []
    forget_tokens(tiny_folder, "eos")
    (drafter, _) = build(load(path, [], None), tmp_path / "without", silent)
    assert caplog.messages == ["the target names no EOS token: every text that it writes goes on to max_new_tokens"]
    written = [read_shard(shard, 8) or [] for shard in (tmp_path / "without" / ".cache" / "text").rglob("*.parquet")]
    assert {len(ids) for rows in written for ids, _ in rows} == {17}
    assert AutoTokenizer.from_pretrained(drafter.model_folder).eos_token is None


def test_prompts_of_unequal_length_need_no_pad_token(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "{"ab" * n}"}}\n' for n in range(1, 7)))
    path = recipe(tmp_path, tiny_folder, epochs=1, score="even")
    (drafter, _) = build(load(path, [f"data.prompts={tmp_path}/p.jsonl"], None), tmp_path / "o", silent)
    assert drafter.manifest["facts"][1]["rows"] > 0


def test_nothing_to_begin_with_is_said_before_anything_starts(tiny_folder: Path, tmp_path: Path) -> None:
    forget_tokens(tiny_folder, "bos", "eos")
    out, path = tmp_path / "out", recipe(tmp_path, tiny_folder)
    said: list[str] = []
    with pytest.raises(ModelError, match=rf"^{path}:3: data\.prompts: .* names neither a BOS nor an EOS token"):
        build(load(path, [], None), out, lambda _d, _t, what: said.append(what))
    assert set(said) == {"reading prompts"}
    assert not (out / ".cache" / "stages").exists()


def test_a_damaged_stage_result_is_made_again(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "artifacts"
    loaded = load(recipe(tmp_path, tiny_folder, epochs=1, score="even"), [], None)
    (drafter, _) = build(loaded, out, silent)
    sound = weights(drafter)
    for file in (out / ".cache" / "stages").glob("*/model/model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    drafter.folder.rename(tmp_path / "elsewhere")
    assert weights(build(loaded, out, silent)[0]) == sound


def test_nothing_of_the_users_is_deleted(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "artifacts"
    (out / "tiny").mkdir(parents=True)
    (out / "tiny" / "thesis.txt").write_text("years of work")
    path = recipe(tmp_path, tiny_folder, epochs=1, score="even")
    with pytest.raises(FactoryError, match="exists and is no artifact"):
        build(load(path, [], None), out, silent)
    (out / "tiny" / "thesis.txt").rename(tmp_path / "thesis.txt")
    (out / "tiny").rmdir()
    build(load(path, [], None), out, silent)
    (out / "tiny" / "report.html").write_text("measured")
    build(load(path, ["stages.1.lr=0.001"], None), out, silent)
    assert [p.read_text() for p in (out / ".cache" / "replaced").glob("tiny-*/report.html")] == ["measured"]


def test_a_bfloat16_target_is_distilled_in_mixed_precision(tiny_folder: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, tiny_folder, epochs=10, score="even")
    (drafter, _) = build(load(path, ["target.dtype=bfloat16"], None), tmp_path / "artifacts", silent)
    facts = drafter.manifest["facts"][1]
    assert drafter.manifest["dtype"] == "bfloat16"
    assert facts["held_out_after"]["forward_kl"] < facts["held_out_before"]["forward_kl"]


def test_an_artifact_of_an_older_version_is_set_aside(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "artifacts"
    loaded = load(recipe(tmp_path, tiny_folder, epochs=1, score="even"), [], None)
    sound = weights(build(loaded, out, silent)[0])
    manifest = out / "tiny" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    drafter = build(loaded, out, silent)[0]
    assert weights(drafter) == sound
    assert len(list((out / ".cache" / "replaced").glob("tiny-*"))) == 1


@pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)
def test_a_target_whose_config_changed_is_another_target(tiny_folder: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "artifacts", recipe(tmp_path, tiny_folder, epochs=1, score="even")
    first = build(load(path), out, silent)[0]
    config = tiny_folder / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-03'))
    with pytest.raises(FactoryError, match="are not the same"):
        first.load_target(None, torch.float32, "cpu")
    second = build(load(path), out, silent)[0]
    assert second.manifest["digest"] != first.manifest["digest"]
    assert json.loads((second.model_folder / "config.json").read_text())["rms_norm_eps"] == 1e-3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_drafter_is_trained_in_float32_and_stored_as_asked(dtype: str, tiny_folder: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, tiny_folder, epochs=2, score="even")
    (drafter, raw) = build(load(path, [f"target.dtype={dtype}"]), tmp_path / "artifacts", silent)
    for made in (drafter, raw):
        stored = load_file(made.model_folder / "model.safetensors")
        assert {str(tensor.dtype) for tensor in stored.values()} == {f"torch.{dtype}"}
        assert made.manifest["dtype"] == dtype
        assert sum(tensor.nbytes for tensor in stored.values()) == made.manifest["forecast_bytes"]
    if dtype == "float32":
        trained = load_file(drafter.model_folder / "model.safetensors").values()
        assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in trained)


def test_a_target_with_nan_is_not_judged(tiny_folder: Path, tmp_path: Path) -> None:
    """A structural build does not read the layers that go; whoever runs the target must."""
    stored = load_file(tiny_folder / "model.safetensors")
    stored[next(name for name in stored if ".3." in name)].fill_(float("nan"))
    save_file(stored, tiny_folder / "model.safetensors", metadata={"format": "pt"})
    path = tmp_path / "cut.yaml"
    path.write_text(f"name: cut\ntarget: {{model: {tiny_folder}}}\nstages: [{{kind: drop_layers, keep: [0, 1]}}]\n")
    (made,) = build(load(path), tmp_path / "artifacts", silent)
    with pytest.raises(ModelError, match="NaN or infinite weights"):
        made.load_target(None, torch.float32, "cpu")


def test_weights_twice_in_one_folder_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    (tiny_folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00001.safetensors"}}'
    )
    with pytest.raises(ModelError, match=r"holds both model\.safetensors and"):
        build(load(recipe(tmp_path, tiny_folder)), tmp_path / "artifacts", silent)
