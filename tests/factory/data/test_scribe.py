import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from factory.data.blocks import Row
from factory.data.scribe import read_shard, write_shard, write_text
from factory.errors import DataError


def silent(_done: int, _total: int, _what: str) -> None:
    pass


def never() -> PreTrainedModel:
    raise AssertionError("the target is not needed")


def sums(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_the_target_writes_what_it_would_sample(tiny: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    model = tiny()
    settings = {"samples": 6, "temperature": 2.0, "max_new_tokens": 12, "seed": 3, "progress": silent}
    prompts = [[1], [5, 6, 7]]
    made = write_text(lambda: model, prompts, batch=4, folder=tmp_path / "a", **settings)
    assert made.prompt == (0, 1, 0, 1, 0, 1)
    rows = made.rows
    for number, (row, length) in enumerate(zip(rows.ids.tolist(), rows.length.tolist(), strict=True)):
        prompt = prompts[number % 2]
        assert row[: len(prompt)] == prompt
        assert rows.answer[number].nonzero().flatten().tolist() == list(range(len(prompt), length))
        answer = row[len(prompt) : length]
        assert 2 not in answer[:-1]
        assert len(answer) == 12 or answer[-1] == 2
    assert len({tuple(row) for row in rows.ids.tolist()}) == 6  # several samples of one prompt differ
    other_batches = write_text(lambda: model, prompts, batch=1, folder=tmp_path / "b", **settings)
    assert torch.equal(rows.ids, other_batches.rows.ids)


def test_writing_goes_on_after_the_last_shard(tiny: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    model = tiny()
    settings = {"temperature": 1.0, "max_new_tokens": 8, "batch": 2, "seed": 0, "progress": silent}
    whole = write_text(lambda: model, [[1]], samples=6, folder=tmp_path / "whole", **settings)
    write_text(lambda: model, [[1]], samples=4, folder=tmp_path / "cut", **settings)
    kept = (tmp_path / "cut" / "shard-00001.parquet").stat().st_mtime_ns
    resumed = write_text(lambda: model, [[1]], samples=6, folder=tmp_path / "cut", **settings)
    assert torch.equal(whole.rows.ids, resumed.rows.ids)
    assert (tmp_path / "cut" / "shard-00001.parquet").stat().st_mtime_ns == kept
    again = write_text(never, [[1]], samples=6, folder=tmp_path / "cut", **settings)
    assert torch.equal(whole.rows.answer, again.rows.answer)


def test_a_damaged_shard_is_written_again(families: dict[str, Callable[..., PreTrainedModel]], tmp_path: Path) -> None:
    model = families["llama"]()
    settings = {"samples": 4, "temperature": 1.0, "max_new_tokens": 8, "batch": 2, "seed": 0, "progress": silent}
    write_text(lambda: model, [[1]], folder=tmp_path / "text", **settings)
    before = sums(tmp_path / "text")
    shard = tmp_path / "text" / "shard-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])
    write_text(lambda: model, [[1]], folder=tmp_path / "text", **settings)
    assert sums(tmp_path / "text") == before


def test_several_processes_share_the_shards(
    families: dict[str, Callable[..., PreTrainedModel]], tmp_path: Path
) -> None:
    model = families["llama"]()
    settings = {"samples": 9, "temperature": 1.0, "max_new_tokens": 8, "batch": 2, "seed": 0}
    alone = write_text(lambda: model, [[1], [4, 5]], folder=tmp_path / "alone", progress=silent, **settings)
    folder, said = tmp_path / "shared", []

    def other() -> None:
        """What process 1 does while process 0 waits for it."""
        with pytest.raises(DataError, match=r"shard-00000\.parquet: another process was to write it"):
            write_text(lambda: model, [[1], [4, 5]], folder=tmp_path / "lonely", progress=silent, **settings, **second)
        write_text(lambda: model, [[1], [4, 5]], folder=folder, progress=silent, **settings, **second)

    second = {"rank": 1, "world": 2}
    shared = write_text(
        lambda: model,
        [[1], [4, 5]],
        folder=folder,
        **settings,
        rank=0,
        world=2,
        progress=lambda done, total, what: said.append((done, total, what.split(",")[0])),
        wait=other,
    )
    assert torch.equal(alone.rows.ids, shared.rows.ids)
    assert sums(folder) == sums(tmp_path / "alone")
    assert said == [(done, 5, "the target writes") for done in (0, 2, 4, 5)]  # shards 0, 2 and 4, the last of one text


def test_progress_tells_the_rate_of_what_is_written_now(
    families: dict[str, Callable[..., PreTrainedModel]], tmp_path: Path
) -> None:
    model, said = families["llama"](), []
    settings = {"samples": 4, "temperature": 1.0, "max_new_tokens": 8, "batch": 2, "seed": 0, "folder": tmp_path}
    write_text(lambda: model, [[1]], progress=lambda *told: said.append(told[2]), **settings)
    assert said[0] == "the target writes"
    assert all(what.startswith("the target writes, ") and what.endswith(" tokens/s") for what in said[1:])
    said.clear()
    write_text(never, [[1]], progress=lambda *told: said.append(told[2]), **settings)
    assert set(said) == {"the target writes"}


def test_filters_of_the_writing(families: dict[str, Callable[..., PreTrainedModel]], tmp_path: Path) -> None:
    model = families["llama"]()
    settings = {"samples": 4, "max_new_tokens": 6, "batch": 4, "seed": 0, "progress": silent}
    greedy = write_text(lambda: model, [[1]], temperature=0.0, folder=tmp_path / "greedy", **settings)
    assert (greedy.facts["rows"], greedy.facts["duplicate_rows"]) == (1, 3)
    likeliest = write_text(lambda: model, [[1]], temperature=3.0, top_k=1, folder=tmp_path / "k", **settings)
    narrow = write_text(lambda: model, [[1]], temperature=3.0, top_p=1e-6, folder=tmp_path / "p", **settings)
    assert greedy.rows.ids.tolist() == likeliest.rows.ids.tolist() == narrow.rows.ids.tolist()


def test_shards_keep_rows_and_their_answers(tmp_path: Path) -> None:
    rows: list[Row] = [([1, 2, 3], 1), ([4, 5, 6, 7, 8], [(1, 2), (3, 5)]), ([9], [])]
    write_shard(tmp_path / "s.parquet", rows)
    assert read_shard(tmp_path / "s.parquet", 3) == [
        ([1, 2, 3], [(1, 3)]),
        ([4, 5, 6, 7, 8], [(1, 2), (3, 5)]),
        ([9], []),
    ]
    assert read_shard(tmp_path / "s.parquet", 4) is None  # of other settings, or by hand
    assert read_shard(tmp_path / "none.parquet", 3) is None
    assert [file.name for file in tmp_path.iterdir()] == ["s.parquet"]
