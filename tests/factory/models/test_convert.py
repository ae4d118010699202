"""Pickled checkpoints become safetensors that stock transformers loads alike; what is more than weights never runs."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from factory.errors import ModelError
from factory.models.convert import convert
from factory.models.located import require_complete


def silent(_done: int, _total: int, _what: str) -> None:
    pass


def same(model: PreTrainedModel, folder: Path) -> bool:
    loaded, told = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"], told
    other = loaded.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in model.state_dict().items())


@pytest.fixture
def pickled(tiny_folder: Path) -> tuple[Path, PreTrainedModel]:
    """The tiny model with its weights as torch.save wrote them, and the model."""
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    torch.save(model.state_dict(), tiny_folder / "pytorch_model.bin")
    (tiny_folder / "model.safetensors").unlink()
    return tiny_folder, model


def test_a_pickled_model_loads_equal(pickled: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    folder, model = pickled
    out = tmp_path / "deep" / "out"
    made = convert(folder, out, silent)
    assert same(model, out)
    require_complete(out)
    # GPT-2's head is its embedding: one of the two is enough.
    assert made.left_out == (("lm_head.weight",) if model.config.tie_word_embeddings else ())
    assert made.tensors == len(model.state_dict()) - len(made.left_out)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        "model.safetensors" if path.name == "pytorch_model.bin" else path.name for path in folder.iterdir()
    )
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    with pytest.raises(ModelError, match=r"out: exists already"):
        convert(folder, out, silent)


def test_shards_in_and_parts_out(pickled: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    folder, model = pickled
    (folder / "pytorch_model.bin").unlink()
    items = list(model.state_dict().items())
    weight_map = {}
    for number, start in enumerate(range(0, len(items), 9), 1):
        name = f"pytorch_model-{number:05d}.bin"
        torch.save(dict(items[start : start + 9]), folder / name)
        weight_map |= {key: name for key, _ in items[start : start + 9]}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    made = convert(folder, tmp_path / "out", silent, part_bytes=20_000)
    assert made.files == len(list((tmp_path / "out").glob("model-*.safetensors"))) > 4
    assert same(model, tmp_path / "out")
    require_complete(tmp_path / "out")
    (folder / "pytorch_model-00002.bin").unlink()
    with pytest.raises(ModelError, match=r"lists shards that are missing: pytorch_model-00002\.bin"):
        convert(folder, tmp_path / "other", silent)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: state,
    ],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_training_scripts_save_is_understood(
    pickled: tuple[Path, PreTrainedModel], tmp_path: Path, wrap: Callable[[dict[str, Any]], Any], legacy: bool
) -> None:
    folder, model = pickled
    (folder / "pytorch_model.bin").unlink()
    state = dict(model.state_dict())
    torch.save(wrap(state), folder / "final.pt", _use_new_zipfile_serialization=not legacy)
    convert(folder, tmp_path / "out", silent)
    assert same(model, tmp_path / "out")


def test_views_of_one_tensor_are_written_apart(pickled: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    folder, model = pickled
    state = dict(model.state_dict())
    vectors = [name for name, tensor in state.items() if tensor.ndim == 1 and len(tensor) == 32]
    block = torch.stack([state[name] for name in vectors]).T.contiguous().T  # not even contiguous rows
    torch.save(state | {name: block[row] for row, name in enumerate(vectors)}, folder / "pytorch_model.bin")
    convert(folder, tmp_path / "out", silent)
    assert same(model, tmp_path / "out")


class Evil:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain pickle"])
def test_a_pickle_with_code_is_refused_and_does_not_run(
    pickled: tuple[Path, PreTrainedModel], tmp_path: Path, how: str
) -> None:
    folder, model = pickled
    proof, file = tmp_path / "proof", folder / "pytorch_model.bin"
    content = {**model.state_dict(), "extra": Evil(proof)}
    if how == "plain pickle":
        file.write_bytes(pickle.dumps({"extra": Evil(proof)}, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(ModelError) as caught:
        convert(folder, tmp_path / "out", silent)
    assert str(caught.value).startswith(f"{file}: refused: it wants to call posix.system")
    assert "nothing of it was run" in str(caught.value)
    assert not proof.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name]  # nothing half made stays


def test_what_cannot_be_converted_says_why(pickled: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    folder, _ = pickled
    file, out = folder / "pytorch_model.bin", tmp_path / "out"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no pickle"):
        file.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"pytorch_model\.bin: (damaged or cut short|refused)"):
            convert(folder, out, silent)
    torch.save([1, 2], file)
    with pytest.raises(ModelError, match="holds no named tensors"):
        convert(folder, out, silent)
    file.rename(folder / "a.pt")
    (folder / "b.pth").write_bytes(whole)
    with pytest.raises(ModelError, match=r"several pickles, a\.pt, b\.pth: leave only the model's"):
        convert(folder, out, silent)
    (folder / "a.pt").unlink()
    (folder / "b.pth").unlink()
    with pytest.raises(ModelError, match="has no pickled weights"):
        convert(folder, out, silent)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="has safetensors already"):
        convert(folder, out, silent)
    with pytest.raises(ModelError, match="no such folder"):
        convert(tmp_path / "gone", out, silent)
    assert not out.exists()
