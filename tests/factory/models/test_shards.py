"""Model folders tensor by tensor: names as the Hub has them, damage, several files, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from factory.anatomy.families import ANATOMIES, stored_as
from factory.anatomy.shapes import Edit
from factory.building.build import build
from factory.errors import ModelError
from factory.models import shards
from factory.models.loading import fingerprint, load_model
from factory.models.located import read_config
from factory.models.shards import Shards, write_shards
from factory.recipes.recipe import load
from factory.surgery.carving import carve_folder, carve_module


def silent(_done: int, _total: int, _what: str) -> None:
    pass


def cut(source: Path, destination: Path, keep: tuple[int, ...] = (0, 2), dtype: str = "auto") -> PreTrainedModel:
    destination.mkdir()
    carve_folder(source, destination, stored_as(read_config(source), dtype), Edit(keep_layers=keep))
    return load_model(destination, dtype=torch.float64)


@pytest.mark.parametrize("family", sorted(ANATOMIES))
@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_is_carved_as_a_module_is(
    family: str, tied: bool, families: dict[str, Callable[..., PreTrainedModel]], tmp_path: Path
) -> None:
    model = families[family](layers=3, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "full", max_shard_size="30KB")
    assert len(list((tmp_path / "full").glob("*.safetensors"))) > 1
    made = cut(tmp_path / "full", tmp_path / "cut")
    assert fingerprint(made) == fingerprint(carve_module(model, Edit(keep_layers=(0, 2))))


def test_a_checkpoint_of_the_old_kind_is_read(
    families: dict[str, Callable[..., PreTrainedModel]], tmp_path: Path
) -> None:
    """GPT-2 lies on the Hub without its prefix, with constants that nothing reads, and with its head twice."""
    model = families["gpt2"](layers=3)
    model.save_pretrained(tmp_path / "new")
    stored = load_file(tmp_path / "new" / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    assert "h.0.attn.c_attn.weight" in old
    old |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 8, 8) for layer in range(3)}
    old["lm_head.weight"] = old["wte.weight"].clone()
    (tmp_path / "old").mkdir()
    save_file(old, tmp_path / "old" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "old" / "config.json").write_bytes((tmp_path / "new" / "config.json").read_bytes())
    assert fingerprint(cut(tmp_path / "old", tmp_path / "a")) == fingerprint(cut(tmp_path / "new", tmp_path / "b"))


def test_weights_in_a_second_layout_are_left_alone(
    families: dict[str, Callable[..., PreTrainedModel]], tmp_path: Path
) -> None:
    families["mistral"](layers=3).save_pretrained(tmp_path / "full")
    save_file({"layers.0.attention.wq.weight": torch.ones(2)}, tmp_path / "full" / "consolidated.safetensors")
    assert cut(tmp_path / "full", tmp_path / "cut").config.num_hidden_layers == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_damaged_weights_are_named(
    value: float, families: dict[str, Callable[..., PreTrainedModel]], tmp_path: Path
) -> None:
    model = families["llama"](layers=3)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3, 4] = value
    model.save_pretrained(tmp_path / "full")
    with pytest.raises(ModelError, match=r"model\.layers\.2\.mlp\.up_proj\.weight holds NaN or infinite weights"):
        cut(tmp_path / "full", tmp_path / "cut")
    assert cut(tmp_path / "full", tmp_path / "other", keep=(0, 1)).config.num_hidden_layers == 2  # it is never read


def test_a_target_with_nan_is_refused_before_it_writes(tiny_target: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_target("llama", tmp_path / "target")
    stored = load_file(folder / "model.safetensors")
    stored["model.norm.weight"][0] = float("nan")
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: x\ntarget: {{model: {folder}}}\ndata: {{prompts: bos, samples: 4, max_new_tokens: 4}}\n"
        "stages: [{kind: distill}]\n"
    )
    said: list[str] = []
    with pytest.raises(ModelError, match=r"NaN or infinite weights in model\.norm\.weight"):
        build(load(recipe), tmp_path / "out", lambda _d, _t, what: said.append(what))
    assert not [what for what in said if "writes" in what]


@pytest.mark.parametrize("dtype", ["auto", "float16", "bfloat16", "float32"])
def test_what_is_written_has_the_dtype_that_config_says(
    dtype: str, families: dict[str, Callable[..., PreTrainedModel]], tmp_path: Path
) -> None:
    families["qwen2"](layers=3, dtype=torch.bfloat16).save_pretrained(tmp_path / "full")
    cut(tmp_path / "full", tmp_path / "cut", dtype=dtype)
    wanted = "bfloat16" if dtype == "auto" else dtype
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["dtype"] == wanted
    stored = load_file(tmp_path / "cut" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in stored.values()} == {f"torch.{wanted}"}


def test_large_output_is_written_in_parts_that_transformers_reads(
    families: dict[str, Callable[..., PreTrainedModel]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = families["opt"](layers=3, dtype=torch.float32)
    model.save_pretrained(tmp_path / "full")
    monkeypatch.setattr(shards, "SHARD_BYTES", 50_000)
    made = cut(tmp_path / "full", tmp_path / "cut", keep=(0, 1, 2))
    names = sorted(path.name for path in (tmp_path / "cut").glob("*.safetensors"))
    assert len(names) > 2 and names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    index = json.loads((tmp_path / "cut" / shards.INDEX).read_text())
    assert set(index["weight_map"].values()) == set(names)
    assert fingerprint(made) == fingerprint(model.double())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "cut").num_parameters() == model.num_parameters()


@pytest.mark.parametrize(("family", "head"), [("llama", "lm_head.weight"), ("gpt_neox", "embed_out.weight")])
def test_a_tied_head_that_is_stored_again_is_left_out_only_if_it_is_the_embedding(
    family: str, head: str, families: dict[str, Callable[..., PreTrainedModel]], tmp_path: Path
) -> None:
    families[family](layers=3, tie_word_embeddings=True).save_pretrained(tmp_path / "full")
    stored = load_file(tmp_path / "full" / "model.safetensors")
    embedding = next(tensor for name, tensor in stored.items() if name.endswith(shards.EMBEDDINGS))
    save_file({**stored, head: embedding.clone()}, tmp_path / "full" / "model.safetensors", metadata={"format": "pt"})
    cut(tmp_path / "full", tmp_path / "cut")
    assert head not in load_file(tmp_path / "cut" / "model.safetensors")
    save_file({**stored, head: embedding + 1}, tmp_path / "full" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"ties head and embedding, but {head} is not"):
        cut(tmp_path / "full", tmp_path / "other")


def test_a_weight_too_large_for_the_dtype_is_refused(
    families: dict[str, Callable[..., PreTrainedModel]], tmp_path: Path
) -> None:
    model = families["llama"](layers=3, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight[0] = 1e6
    model.save_pretrained(tmp_path / "full")
    with pytest.raises(ModelError, match=r"model\.norm\.weight: a weight is too large for torch\.float16"):
        cut(tmp_path / "full", tmp_path / "cut", dtype="float16")
    assert cut(tmp_path / "full", tmp_path / "other", dtype="bfloat16").config.num_hidden_layers == 2


def test_a_file_that_vanishes_is_told(families: dict[str, Callable[..., PreTrainedModel]], tmp_path: Path) -> None:
    families["llama"](layers=1).save_pretrained(tmp_path / "full")
    opened = Shards(tmp_path / "full", ANATOMIES["llama"], tied=False)
    (tmp_path / "full" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.norm\.weight cannot be read"):
        opened.read("model.norm.weight")


def test_carving_needs_memory_for_what_it_holds_and_not_for_the_target(tmp_path: Path) -> None:
    """40 layers of 8 MB, two of them kept: the process must not grow by the other 38."""
    config = {
        **{"model_type": "llama", "vocab_size": 64, "hidden_size": 512, "intermediate_size": 1024, "dtype": "float32"},
        **{"num_hidden_layers": 40, "num_attention_heads": 8, "max_position_embeddings": 64},
    }
    shape = {"q": (512, 512), "k": (512, 512), "v": (512, 512), "o": (512, 512)}
    names = {f"self_attn.{key}_proj.weight": size for key, size in shape.items()}
    names |= {"mlp.gate_proj.weight": (1024, 512), "mlp.up_proj.weight": (1024, 512)}
    names |= {"mlp.down_proj.weight": (512, 1024), "input_layernorm.weight": (512,)}
    names |= {"post_attention_layernorm.weight": (512,)}
    folder = tmp_path / "target"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tensors = [(f"model.layers.{i}.{name}", torch.ones(size)) for i in range(40) for name, size in names.items()]
    tensors += [("model.embed_tokens.weight", torch.ones(64, 512)), ("lm_head.weight", torch.ones(64, 512))]
    write_shards(folder, [*tensors, ("model.norm.weight", torch.ones(512))], torch.float32)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert size > 300e6
    code = (
        "import json, sys; from pathlib import Path\n"
        "from factory.surgery.carving import carve_folder; from factory.anatomy.shapes import Edit\n"
        "from factory.building.meter import metered\n"
        "folder, out = Path(sys.argv[1]), Path(sys.argv[2]); out.mkdir()\n"
        "config = json.loads((folder / 'config.json').read_text())\n"
        "with metered('cpu') as taken: carve_folder(folder, out, config, Edit(keep_layers=(0, 39)))\n"
        "print(taken['peak_memory_bytes'] - taken['was_held_bytes'])\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "cut")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 150e6
