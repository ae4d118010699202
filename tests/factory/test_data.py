from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from factory.data import encode_prompts, split_held_out, text_blocks, write_text
from factory.errors import DataError
from factory.prompts import read_prompts


def silent(_done: int, _total: int, _what: str) -> None:
    pass


def test_answer_mask_selects_the_positions_that_predict_answers() -> None:
    block = text_blocks([([7, 8, 9, 10], 2), ([5, 6], 1)])
    assert block.ids.tolist() == [[7, 8, 9, 10], [5, 6, 0, 0]]
    assert block.answer_mask.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert block.token_mask.tolist() == [[True] * 4, [True, True, False, False]]
    trimmed = block.rows([1])
    assert trimmed.ids.tolist() == [[5, 6]]


def test_the_target_writes_what_it_would_sample(tiny: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    model = tiny()
    settings = {"samples": 6, "temperature": 2.0, "max_new_tokens": 12, "seed": 3, "progress": silent}
    prompts = [[1], [5, 6, 7]]
    rows = write_text(lambda: model, prompts, batch=4, folder=tmp_path / "a", **settings)
    assert rows.answer_from.tolist() == [1, 3, 1, 3, 1, 3]
    assert [row[:start] for row, start in zip(rows.ids.tolist(), rows.answer_from.tolist(), strict=True)] == prompts * 3
    assert len({tuple(row) for row in rows.ids.tolist()}) == 6  # several samples of one prompt differ
    for row, length, start in zip(rows.ids.tolist(), rows.length.tolist(), rows.answer_from.tolist(), strict=True):
        answer = row[start:length]
        assert 2 not in answer[:-1]
        assert len(answer) == 12 or answer[-1] == 2
    other_batches = write_text(lambda: model, prompts, batch=1, folder=tmp_path / "b", **settings)
    assert torch.equal(rows.ids, other_batches.ids)


def test_writing_goes_on_after_the_last_shard(tiny: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    model = tiny()
    settings = {"temperature": 1.0, "max_new_tokens": 8, "batch": 2, "seed": 0, "progress": silent}
    whole = write_text(lambda: model, [[1]], samples=6, folder=tmp_path / "whole", **settings)
    write_text(lambda: model, [[1]], samples=4, folder=tmp_path / "cut", **settings)
    kept = (tmp_path / "cut" / "shard-00001.safetensors").stat().st_mtime_ns
    resumed = write_text(lambda: model, [[1]], samples=6, folder=tmp_path / "cut", **settings)
    assert torch.equal(whole.ids, resumed.ids)
    assert (tmp_path / "cut" / "shard-00001.safetensors").stat().st_mtime_ns == kept


@pytest.mark.parametrize(("prompts", "samples"), [(1, 10), (5, 20), (4, 4), (7, 3)])
def test_held_out_prompts_are_never_trained_on(prompts: int, samples: int) -> None:
    training, held_out = split_held_out(prompts, samples, 0.2)
    assert sorted([*training, *held_out]) == list(range(samples))
    if prompts > 1:
        assert not {i % prompts for i in training} & {i % prompts for i in held_out}
    assert training
    assert held_out


def test_no_share_holds_nothing_out() -> None:
    assert split_held_out(5, 10, 0.0) == (list(range(10)), [])


def test_prompt_files(tmp_path: Path) -> None:
    lines = tmp_path / "p.txt"
    lines.write_text("one\n\n two\r\n")
    assert read_prompts(lines) == ["one", " two"]
    records = tmp_path / "p.jsonl"
    records.write_text('{"prompt": "a\\nb"}\n{"turns": ["c", "d"]}\n\n{"text": "e\u2028f"}\n')
    assert read_prompts(records) == ["a\nb", "c", "e\u2028f"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{bad\n", r"p\.jsonl:1: not JSON"),
        ('{"prompt": "a"}\n[1]\n', r"p\.jsonl:2: expected an object"),
        ('{"question": "a"}\n', r"p\.jsonl:1: no text under .*question"),
        ('{"turns": []}\n', r"p\.jsonl:1: no text"),
        ("\n", r"p\.jsonl: holds no prompt"),
    ],
)
def test_bad_prompt_files_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_prompts(path)


def test_an_unreadable_prompt_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: cannot be read"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"latin\.txt: cannot be read"):
        read_prompts(tmp_path / "latin.txt")


def test_prompts_that_leave_no_room_are_counted(tiny_folder: Path) -> None:
    from factory.models import load_tokenizer

    ids, left_out = encode_prompts(load_tokenizer(tiny_folder), ["abc", "a" * 50], 10)
    assert len(ids) == 1
    assert left_out == 1
