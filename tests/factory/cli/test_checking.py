"""`factory check`, and what a build refuses by its forecast: exit codes, what is said, for which files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants
from loaded import LLAMA

from factory.forecasting.estimate import WITHOUT_TARGET
from factory.stages import Distill

ROOT = Path(__file__).resolve().parents[3]


ANY = ROOT / "recipes" / "demo" / "any.yaml"


def test_check_forecasts_from_the_config_alone(factory: Callable[..., tuple[int, str, str]], target: Path) -> None:
    code, out, _ = factory("check", ANY, "--target", target)
    assert code == 0
    # Layers: 64*16*(8+4) + 3*64*128 = 36,864 each; head 512*64 = 32,768, tied.
    c = (2 * 36_864 + 32_768) / (8 * 36_864 + 32_768)
    first, second, *table = out.splitlines()
    assert first == f"ok     {ANY}: any: drop_layers > distill"
    assert second.startswith(f"any: 8 -> 2 layers, 106.82 k parameters, c = {c:.3f} in bytes")
    assert [line.split()[0] for line in table[1:5]] == ["target", "text", "drop_layers", "distill"]
    code, out, _ = factory("check", ANY, "--target", target, "--device", "h200", "--json")
    (record,) = json.loads(out.splitlines()[-1])["recipes"]
    assert record["candidates"][0]["forecast"]["c_bytes"] == pytest.approx(c, abs=0.002)
    assert record["candidates"][0]["forecast"]["profile"]["kind"] == "cuda"
    code, _, err = factory("check", ANY, "--device", "h20")
    assert (code, err.splitlines()[0].split(";")[0]) == (2, "--device h20: no such profile")


EVERY_KEY = """\
name: every
target: {model: TARGET}
data: {prompts: bos, samples: 1000}
stages:
  - {kind: drop_layers, keep: 2}
  - {kind: fresh, inherit: [embedding]}
  - kind: distill
    method: seq_kd
    loss: [{kind: jsd, beta: 0.3}, {kind: lk_hybrid, eta: 2.0, weight: [[0, 0.0], [0.5, 1.0]]}]
    temperature: 2.0
    teacher: cache
    top_k: 32
    drawn: 8
    select: {keep: 0.4, reference_epochs: 0.5}
    epochs: 3
    lr: 1.0e-3
    warmup: 0.1
    final_lr: 0.0
    optimizer: muon
    weight_decay: 0.1
    clip: 0.5
    ema: 0.99
    freeze: [embedding, norms]
    lora: 8
    untie_head: false
    batch: 16
    accumulate: 2
    pack: 512
    gradient_checkpointing: true
    compile: true
    precision: bfloat16
    checkpoint_every: 10
    check_every: 5
    patience: 3
    keep: last
  - {kind: distill, loss: tv, on_policy: {share: [[0, 0.1], [1, 1.0]], begin: prompt, new_tokens: 16, decay: 0.9}}
"""


def test_check_forecasts_every_way_to_distil(factory: Callable[..., tuple[int, str, str]], target: Path) -> None:
    Path("every.yaml").write_text(EVERY_KEY.replace("TARGET", str(target)))
    assert [name for name in Distill.model_fields if not re.search(rf"\b{name}:", EVERY_KEY)] == []
    code, said, _ = factory("check", "every.yaml", "--json")
    assert code == 0
    (record,) = json.loads(said.splitlines()[-1])["recipes"]
    steps = record["candidates"][0]["forecast"]["steps"]
    assert [step["step"] for step in steps] == [
        "target",
        "text",
        "teacher",
        "drop_layers",
        "fresh",
        "distill",
        "distill",
    ]
    assert all(step["seconds"] > 0 and step["peak_memory_bytes"] > 0 for step in steps[1:])


def test_check_reads_folders_and_patterns_once_and_tells_all_faults(
    factory: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "all" / "deep").mkdir(parents=True)
    good = "name: x\nstages: [{kind: drop_layers, keep: 2}]\n"
    (tmp_path / "all" / "a.yaml").write_text(good)
    (tmp_path / "all" / "b.yaml").write_text("name: x\n")
    (tmp_path / "all" / "deep" / "c.yml").write_text(good + "sede: 1\n")
    code, out, err = factory("check", "all/*.yaml", "all", "gone.yaml", "all/**/c.*")
    assert code == 2
    assert out.splitlines() == [
        f"ok     all/a.yaml: x: drop_layers; {WITHOUT_TARGET}",
        "wrong  all/b.yaml",
        "wrong  all/deep/c.yml",
        "wrong  gone.yaml",
    ]
    assert err.splitlines() == [
        "all/b.yaml:1: stages: missing: what is done to a copy of the target, in this order",
        "all/deep/c.yml:3: sede: unknown key 'sede'; did you mean 'seed'?",
        "gone.yaml: no recipe there; name .yaml files, or folders that hold some",
    ]


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({**LLAMA, "model_type": "mamba"}, "recipes/r.yaml:2: target: model type 'mamba' is not supported"),
        (
            {**LLAMA, "num_hidden_layers": 2},
            "recipes/r.yaml:4: stages.0: drop_layers: keep is 3, the model has 2 layers",
        ),
        ({"model_type": "llama"}, "recipes/r.yaml:2: target: its config.json is not complete: hidden_size is missing"),
    ],
)
def test_check_tells_what_the_target_cannot_do(
    factory: Callable[..., tuple[int, str, str]], target: Path, config: dict[str, object], fault: str
) -> None:
    (target / "config.json").write_text(json.dumps(config))
    Path("recipes").mkdir()
    Path("recipes/r.yaml").write_text(
        "name: x\ntarget: {model: ../target}\nstages:\n  - {kind: drop_layers, keep: 3}\n"
    )
    code, _, err = factory("check", "recipes/r.yaml")
    assert code == 2
    assert err.startswith(fault)


GRID = """\
name: x
target: {model: ../target}
stages:
  - {kind: drop_layers, keep: 3}
grid:
  stages.0.keep: [1, 2]
"""


def test_check_counts_a_grid_and_forecasts_each_candidate(
    factory: Callable[..., tuple[int, str, str]], target: Path
) -> None:
    Path("recipes").mkdir()
    recipe = Path("recipes/r.yaml")
    recipe.write_text(GRID)
    code, out, _ = factory("check", "recipes/r.yaml")
    assert code == 0
    first, second, *table, last = out.splitlines()
    assert first == "ok     recipes/r.yaml: x: drop_layers; 2 candidates"
    assert (second.split(" layers")[0], last.split(" layers")[0]) == ("x--keep1: 8 -> 1", "  x--keep2: 8 -> 2")
    assert [line.split()[0] for line in table[:3]] == ["step", "target", "drop_layers"]  # the first one in full
    Path("recipes/s.yaml").write_text(GRID)
    lines = factory("check", "recipes")[1].splitlines()
    assert [line.split(" layers")[0] for line in lines[1:3]] == ["  x--keep1: 8 -> 1", "  x--keep2: 8 -> 2"]
    recipe.write_text(GRID.replace("[1, 2]", "[1, 9]\n  seed: [0, 1]"))
    code, _, err = factory("check", "recipes/r.yaml")
    fault = "recipes/r.yaml:6: grid: stages.0.keep: drop_layers: keep is 9, the model has 8 layers\n"
    assert (code, err) == (2, fault)


def test_a_large_grid_is_counted_and_a_build_of_it_asks(
    factory: Callable[..., tuple[int, str, str]], target: Path
) -> None:
    Path("recipes").mkdir()
    grid = GRID.replace("[1, 2]", "[1, 2, 3, 4]").replace("stages:", "data: {prompts: bos}\nstages:")
    values = f"  data.samples: {list(range(10, 60))}\n  seed: {list(range(50))}\n"
    Path("recipes/r.yaml").write_text(grid + values)
    code, out, _ = factory("check", "recipes/r.yaml")
    assert code == 0
    assert out.splitlines()[0] == (
        "ok     recipes/r.yaml: x: drop_layers; 10,000 candidates, and a build of so many asks for --yes; "
        "every value was checked once, with the others at their first"
    )
    assert sum(line.startswith("  x--keep") for line in out.splitlines()) == 63  # the first one is shown in full
    assert out.splitlines()[-1] == "  and 38 more"
    code, _, err = factory("build", "recipes/r.yaml")
    fault = "recipes/r.yaml:6: grid: 10,000 candidates; to build more than 64 say --yes, or vary fewer values\n"
    assert (code, err) == (2, fault)
    assert not Path("artifacts").exists()


def test_a_target_without_weights_is_refused_before_anything_is_made(
    factory: Callable[..., tuple[int, str, str]], target: Path
) -> None:
    code, _, err = factory("build", ANY, "--target", target)
    assert code == 2
    assert err.splitlines() == [
        f"{target} has no .safetensors file: save the model with transformers' save_pretrained",
        f"{target} has no tokenizer: save it there too, with its save_pretrained, or copy its files",
    ]


def test_what_is_forecast_not_to_fit_is_said_and_yes_tries_it(
    factory: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = {**LLAMA, "hidden_size": 1 << 16, "vocab_size": 1 << 24}
    monkeypatch.setattr("factory.forecasting.estimate.hub_config", lambda *_what: huge)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, err = factory("build", ANY, "--target", "someone/huge")
    assert code == 2  # before a byte of it is downloaded
    assert err.splitlines()[-1] == "to build it all the same, say --yes"
    assert "of memory, and " in err and "of disk, and " in err
    code, _, err = factory("build", ANY, "--target", "someone/huge", "--yes")
    assert code == 2 and "target.model: cannot download someone/huge: HF_HUB_OFFLINE is set, and it is not" in err


def test_a_build_needs_a_recipe_or_a_target(factory: Callable[..., tuple[int, str, str]], target: Path) -> None:
    code, _, err = factory("build")
    assert (code, err) == (2, "name a RECIPE, or give --target MODEL_OR_FOLDER to have one made for it\n")
    code, _, err = factory("build", "--target", "target")
    assert code == 2
    assert "no .safetensors file" in err.splitlines()[-2]  # the recipe that was made for it got that far
    (recipe,) = Path("artifacts/.cache/recipes").glob("*.yaml")
    assert f"the recipe is {recipe}: copy it to change it" in err
    assert factory("check", recipe)[0] == 0


@pytest.mark.parametrize("name", ["my model", "a--b/c", "x/y."])
def test_what_can_be_no_name_on_the_hub_is_a_fault(factory: Callable[..., tuple[int, str, str]], name: str) -> None:
    code, out, err = factory("check", ANY, "--target", name)
    assert code == 2 and out.startswith("wrong ")
    assert f"{name}: neither a folder here nor a name that the Hub could have" in err
    code, _, err = factory("build", ANY, "--target", name)
    assert code == 2
    assert f"{name}: neither a folder here nor" in err
