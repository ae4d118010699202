"""Lets the target write the text that a drafter learns from.

Text of other origin teaches a drafter to predict tokens that it will never be asked for. What is
written is kept in shards of parquet, one a batch, each a pure function of (target, prompts, settings,
seed): a killed run goes on after its last shard, and several processes may share the shards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from factory.data.blocks import Corpus, Row, corpus, spans_of
from factory.decoding.decoder import Limits, autoregressive
from factory.decoding.eager import EagerReader
from factory.decoding.sampling import Noise, Sampling
from factory.errors import DataError
from factory.models.loading import context_length, eos_token_ids

Progress = Callable[[int, int, str], None]


def write_text(
    target: Callable[[], PreTrainedModel],
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    batch: int,
    seed: int,
    folder: Path,
    progress: Progress,
    top_k: int = 0,
    top_p: float = 1.0,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> Corpus:
    """The target's own continuations: sample i continues prompt i % len(prompts). Kept in `folder`.

    The target is asked for only where something is left to write. Process `rank` of `world` writes
    every world-th shard, calls `wait`, which returns when all have got there, and then reads them all.
    A shard that is damaged is written again. Raises DataError where another process left one out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    shards = [range(start, min(start + batch, samples)) for start in range(0, samples, batch)]
    mine = range(rank, len(shards), world)
    found: dict[int, list[Row]] = {}
    done, to_do = 0, sum(len(shards[number]) for number in mine)
    tokens, taken_s = 0, 0.0
    said = "the target writes"
    progress(done, to_do, said)
    for number in mine:
        chosen, file = shards[number], folder / shard_name(number)
        rows = read_shard(file, len(chosen))
        if rows is None:
            given = [list(prompts[i % len(prompts)]) for i in chosen]
            model = target()
            limits = Limits(max_new_tokens=max_new_tokens, eos=eos_token_ids(model), context=context_length(model))
            noise = Noise(seed, list(chosen), device=str(model.device))
            began_s = time.monotonic()
            outputs = autoregressive(EagerReader(model), given, sampling, limits, noise)
            taken_s += time.monotonic() - began_s
            tokens += sum(len(output.tokens) for output in outputs)
            said = f"the target writes, {tokens / max(taken_s, 1e-9):,.0f} tokens/s"
            rows = [([*output.prompt, *output.tokens], len(output.prompt)) for output in outputs]
            write_shard(file, rows)
        found[number] = rows
        done += len(rows)
        progress(done, to_do, said)
    wait()
    written: list[Row] = []
    for number, chosen in enumerate(shards):
        others = found.get(number) or read_shard(folder / shard_name(number), len(chosen))
        if others is None:
            raise DataError(f"{folder / shard_name(number)}: another process was to write it; start all of them again")
        written += others
    return corpus(written, [i % len(prompts) for i in range(samples)])


def shard_name(number: int) -> str:
    """A shard's file, by its place from 0."""
    return f"shard-{number:05d}.parquet"


def write_shard(file: Path, rows: Sequence[Row]) -> None:
    """Keep rows as columns `ids`, and `answer`: start, end of each span, one after the other. All of them or none."""
    import pyarrow
    from pyarrow import parquet

    flat = [[edge for span in spans_of(answers, len(ids)) for edge in span] for ids, answers in rows]
    integers = pyarrow.list_(pyarrow.int32())
    table = pyarrow.table(
        {
            "ids": pyarrow.array([list(ids) for ids, _ in rows], integers),
            "answer": pyarrow.array(flat, integers),
        }
    )
    partial = file.with_suffix(".partial")
    try:
        parquet.write_table(table, partial)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)  # what a full disk cut short takes the room
        raise


def read_shard(file: Path, count: int) -> list[Row] | None:
    """A shard's rows, or None where there are not `count` whole ones."""
    import pyarrow
    from pyarrow import parquet

    if not file.is_file():
        return None
    try:
        table = parquet.read_table(file, columns=["ids", "answer"])
        ids, edges = table["ids"].to_pylist(), table["answer"].to_pylist()
    except (OSError, KeyError, pyarrow.ArrowException):
        return None
    rows: list[Row] = [
        (row, list(zip(flat[::2], flat[1::2], strict=True))) for row, flat in zip(ids, edges, strict=True)
    ]
    return rows if len(rows) == count else None
