"""What is wrong with a model's files is told from names, sizes and headers, before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from factory.errors import ModelError
from factory.models.located import header_fault, model_identity, require_complete


def faults_of(folder: Path) -> list[str]:
    with pytest.raises(ModelError) as caught:
        require_complete(folder)
    return str(caught.value).splitlines()


@pytest.fixture
def sharded(tiny: Callable[..., PreTrainedModel], tmp_path: Path) -> Path:
    """A model in several shards, as transformers writes it."""
    folder = tmp_path / "sharded"
    tiny(layers=4).save_pretrained(folder, max_shard_size="60KB")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_sound_folder_passes(tiny_folder: Path, sharded: Path) -> None:
    require_complete(tiny_folder)
    require_complete(sharded)
    assert len(list(sharded.glob("*.safetensors"))) > 2


def test_a_missing_and_a_truncated_shard_are_told_together(sharded: Path) -> None:
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    first.unlink()
    size = second.stat().st_size
    second.write_bytes(second.read_bytes()[:-10])
    shards = len(list(sharded.glob("*.safetensors"))) + 1
    assert faults_of(sharded) == [
        f"{sharded}: 1 of {shards} shards that model.safetensors.index.json lists are missing: {first.name}; "
        "download or copy them",
        f"{second}: cut short: {size - 10:,} of {size:,} bytes; download or copy it again",
    ]


def test_a_damaged_index_is_told(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    for text in ("{", "[]", '{"weight_map": 1}', "{}"):
        index.write_text(text)
        (fault,) = faults_of(sharded)
        assert fault.startswith(f"{index}: damaged (")


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda data: b"", "cut short or no safetensors file (0 bytes"),
        (lambda data: data[:50], "cut short or no safetensors file (50 bytes"),
        (lambda data: b"\xff" * 8 + data[8:], "cut short or no safetensors file"),
        (lambda data: data[:8] + b"!" + data[9:], "damaged: its header cannot be read"),
        (lambda data: data + b"xyz", "damaged: 3 bytes more than its header tells of"),
        (lambda data: data[:-1], "cut short: "),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer and not the weights"),
    ],
)
def test_each_kind_of_damage_is_told(tiny_folder: Path, damage: Callable[[bytes], bytes], fault: str) -> None:
    file = tiny_folder / "model.safetensors"
    assert header_fault(file) == ""
    file.write_bytes(damage(file.read_bytes()))
    (told,) = faults_of(tiny_folder)
    assert told.startswith(f"{file}: {fault}")


def test_pickles_are_refused_and_the_way_out_is_named(tiny_folder: Path) -> None:
    (tiny_folder / "model.safetensors").unlink()
    (tiny_folder / "training_args.bin").write_bytes(b"")
    expected = f"{tiny_folder} has no .safetensors file: save the model with transformers' save_pretrained"
    assert faults_of(tiny_folder) == [expected]
    for name in ("pytorch_model-1.bin", "pytorch_model-2.bin"):
        (tiny_folder / name).write_bytes(b"")
    (told,) = faults_of(tiny_folder)
    assert told == (
        f"{tiny_folder} has only pickled weights (pytorch_model-1.bin, pytorch_model-2.bin), which can run code when "
        f"they are loaded and are refused: make safetensors of them with `factory convert {tiny_folder} OUT`"
    )
    with pytest.raises(ModelError, match="factory convert"):
        model_identity(tiny_folder)


def test_a_folder_without_a_tokenizer_or_with_a_stray_name_is_told(tiny_folder: Path) -> None:
    for path in tiny_folder.glob("tokenizer*"):
        path.unlink()
    shutil.move(tiny_folder / "model.safetensors", tiny_folder / "adapter.safetensors")
    assert faults_of(tiny_folder) == [
        f"{tiny_folder} has neither model.safetensors nor model.safetensors.index.json, only adapter.safetensors: "
        "copy the missing file, or save the model again",
        f"{tiny_folder} has no tokenizer: save it there too, with its save_pretrained, or copy its files",
    ]


def test_a_header_that_tells_of_no_tensor_is_sound(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert header_fault(tmp_path / "x.safetensors") == ""
