"""The target's predictions, written once by a target that reads the text, and read back by all that learn from it.

What is kept of a position, and what that leaves out, is told in `teacher_shards`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from factory.data.blocks import TextBlocks
from factory.errors import ModelError
from factory.files.disk import disk_errors
from factory.limits import LOGITS_BYTES, READ_ROWS
from factory.models.loading import hidden_states
from factory.teaching.teacher_shards import (
    META,
    damaged,
    is_whole,
    most_moved,
    normalised,
    open_shard,
    read_meta,
    require_files,
    require_key,
    row_ranges,
    shard_path,
    write_meta,
    write_shard,
)

_MOST_ROUNDING = 0.02  # 2^-11 of the entropy, which is below 13 nats in any vocabulary, thrice over


class Settings(Protocol):
    """What decides a cache beside target and text: `factory.given.CacheSettings`."""

    @property
    def temperature(self) -> float:
        """Of the predictions."""

    @property
    def top_k(self) -> int:
        """Tokens kept of each position."""

    @property
    def drawn(self) -> int:
        """Tokens drawn to stand for all others."""


def write_cache(
    target: PreTrainedModel,
    text: TextBlocks,
    settings: Settings,
    *,
    folder: Path,
    key: Mapping[str, Any],
    progress: Callable[[int, int, str], None],
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> None:
    """Let the target read the whole text, in its own order, and keep its predictions in `folder`.

    `key` says what is read by whom (`target`, `text`, `dtype`), as JSON; with the settings it is kept in meta.json. A
    shard that is there and sound is kept: a killed run goes on after its last one, and its bytes are those of an
    undisturbed run, since forward passes end where shards do. Of `world` processes each writes every world-th shard;
    `wait` returns when all have come to it, and the first of them then writes meta.json. Raises DiskError with all
    finished shards kept, DataError where the folder holds a cache of something else, ModelError where a prediction
    is not a number.
    """
    whole = _whole_key(key, settings)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / META).is_file():
            require_key(folder, read_meta(folder)["key"], whole)
        counts = text.answer_mask.sum(-1).tolist()
        kept = _kept(target, settings)
        progress(0, len(text), "the teacher reads")
        for number, rows in enumerate(row_ranges(len(text))):
            path = shard_path(folder, number)
            if number % world == rank and not is_whole(path, whole, sum(counts[rows.start : rows.stop]), kept):
                write_shard(path, _read_rows(target, text, rows, settings, progress), whole)
            progress(rows.stop, len(text), "the teacher reads")
        wait()
        if rank == 0:
            drawn = settings.drawn if settings.top_k < _vocabulary(target) else 0
            write_meta(folder, whole, len(text), _vocabulary(target), kept, drawn)
        wait()


def _whole_key(key: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    return {**key, "temperature": settings.temperature, "top_k": settings.top_k, "drawn": settings.drawn}


def _kept(target: PreTrainedModel, settings: Settings) -> int:
    """Tokens kept of each position, those that are drawn among them."""
    vocabulary = _vocabulary(target)
    return settings.top_k + settings.drawn if settings.top_k < vocabulary else vocabulary


def _vocabulary(target: PreTrainedModel) -> int:
    return int(target.get_output_embeddings().weight.shape[0])


@torch.no_grad()
def _read_rows(
    target: PreTrainedModel,
    text: TextBlocks,
    rows: range,
    settings: Settings,
    progress: Callable[[int, int, str], None],
) -> dict[str, torch.Tensor]:
    """A shard's tensors."""
    vocabulary = _vocabulary(target)
    chunk = max(1, LOGITS_BYTES // (4 * vocabulary))
    head, id_type = target.get_output_embeddings(), torch.uint16 if vocabulary <= 1 << 16 else torch.int32
    counts: list[int] = []
    ids, log_p, tail = [], [], []
    rounding = torch.zeros((), dtype=torch.float64)
    for first in range(rows.start, rows.stop, READ_ROWS):
        chosen = text.rows(range(first, min(first + READ_ROWS, rows.stop)))
        mask = chosen.answer_mask
        counts += mask.sum(-1).tolist()
        hidden = hidden_states(target, chosen.ids.to(target.device), mask.to(target.device))  # [N, D]
        for start in range(0, len(hidden), chunk):
            generator = torch.Generator().manual_seed(first * 1_000_003 + start)  # a function of the place alone
            found = _predictions(head(hidden[start : start + chunk]), settings, generator)
            if not bool(torch.isfinite(found[3]).all()):
                raise ModelError(
                    f"{target.config.name_or_path}: a prediction in rows {first} to {first + len(chosen) - 1} of the "
                    f"text is NaN: {target.dtype} is too narrow for this model; give `target: {{dtype: float32}}`"
                )
            ids.append(found[0].cpu().to(id_type))
            log_p.append(found[1].cpu())
            tail.append(found[2].cpu())
            rounding += found[3].double().sum().cpu()
        progress(first + len(chosen), len(text), "the teacher reads")
    kept = _kept(target, settings)
    return {
        "ids": torch.cat([torch.empty((0, kept), dtype=id_type), *ids]),  # [M, k + m]
        "log_p": torch.cat([torch.empty((0, kept), dtype=torch.float16), *log_p]),  # [M, k + m]
        "tail": torch.cat([torch.empty(0), *tail]),  # [M]
        "start": torch.tensor([0, *counts]).cumsum(0),  # [rows + 1]
        "rounding": rounding,  # [] summed over positions
    }


def _predictions(
    logits: torch.Tensor, settings: Settings, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of logits [C, V]: ids [C, k + m], likeliest first, then drawn; log_p of these in float16; tail [C]; what rounding
    of the k moves [C]."""
    every = torch.log_softmax(logits.float() / settings.temperature, -1)
    exact, ids = every.topk(min(settings.top_k, every.shape[-1]), -1)
    others = every.scatter(-1, ids, -torch.inf).exp_()
    tail = others.sum(-1)
    log_p = exact.clamp_(min=torch.finfo(torch.float16).min).half()  # an infinite one would make a NaN of 0 x log 0
    read_log_p, read_tail = normalised(log_p, tail)
    rounding = ((read_log_p.exp() - exact.exp()).abs().sum(-1) + (read_tail - tail).abs()) / 2
    if settings.drawn and settings.top_k < every.shape[-1]:
        drawn = _draw(others, settings.drawn, generator)
        its_log_p = every.gather(-1, drawn).clamp_(min=torch.finfo(torch.float16).min).half()
        ids, log_p = torch.cat((ids, drawn), -1), torch.cat((log_p, its_log_p), -1)
    return ids, log_p, tail, rounding


def _draw(others: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:  # [C, V] -> [C, count] int64
    """Tokens drawn in proportion to `others`, one from each `count`-th part of their mass, so that they lie apart."""
    mass = others.double().cumsum(-1)  # in float32 it would miss the last tokens of a large vocabulary
    uniform = torch.rand((len(others), count), generator=generator, dtype=torch.float64).to(others.device)
    places = (torch.arange(count, device=others.device) + uniform) / count * mass[:, -1:]
    return torch.searchsorted(mass, places, right=True).clamp_(max=others.shape[-1] - 1)


class TeacherCache:
    """A finished cache, open for reading. Shards stay mapped; their pages belong to the system, which may drop them."""

    def __init__(self, folder: Path, meta: Mapping[str, Any]) -> None:
        self._folder, self._meta = folder, meta
        self._open: dict[int, tuple[Any, list[int]]] = {}  # by number: the shard, its rows' offsets

    @classmethod
    def open(cls, folder: Path, key: Mapping[str, Any] | None = None) -> TeacherCache:
        """The finished cache in `folder`, with every entry of `key` as there (`target`, `text`, `dtype`, `temperature`,
        `top_k`, `drawn`; those that are known). Raises DataError where it is of something else, unfinished or damaged.
        """
        meta = read_meta(folder)
        require_key(folder, meta["key"], key or {})
        require_files(folder, meta)
        return cls(folder, meta)

    def __len__(self) -> int:
        """Rows of the text."""
        return int(self._meta["rows"])

    @property
    def temperature(self) -> float:
        """That the predictions were softened by."""
        return float(self._meta["key"]["temperature"])

    @property
    def drawn(self) -> int:
        """Tokens of each position that stand for all others, the last ones in `rows`."""
        return int(self._meta["drawn"])

    @property
    def facts(self) -> dict[str, Any]:
        """For reports: sizes, and what is left out. `alpha_bound` is of the whole text."""
        names = ("rows", "positions", "kept", "bytes", "bytes_per_position")
        bounds = ("mean_tail", "max_tail", "mean_rounding", "alpha_bound")
        full_bytes = 2 * self._meta["vocabulary"]
        return {
            "temperature": self.temperature,
            "top_k": self._meta["key"]["top_k"],
            "drawn": self.drawn,
            **{name: self._meta[name] for name in names},
            "share_of_full_float16": self._meta["bytes_per_position"] / full_bytes,
            **{name: self._meta[name] for name in bounds},
        }

    def alpha_bound(self, indices: Sequence[int]) -> float:
        """What it may move the mean overlap of those rows by: at most, or with draws in 95 cases of 100."""
        _, _, tail = self.rows(indices)
        moved = most_moved(float(tail.double().sum()), float(tail.double().square().sum()), self.drawn)
        return moved / max(1, len(tail)) + float(self._meta["mean_rounding"])

    def rows(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The predictions at the answer positions of those rows of the whole text, row after row.

        Returns ids [N, k + m] int64, likeliest first, the last m drawn; log_p of them in float16 and tail [N] in
        float32, as they are stored: who computes with them divides by their sum. Only these rows are read. Raises
        DataError where a shard is missing or damaged, IndexError beyond the last row.
        """
        found = [self._row(int(index)) for index in indices]
        kept = self._meta["kept"]
        ids = torch.cat([torch.empty((0, kept), dtype=torch.int64), *(each.long() for each, _, _ in found)])
        log_p = torch.cat([torch.empty((0, kept), dtype=torch.float16), *(each for _, each, _ in found)])
        tail = torch.cat([torch.empty(0), *(each for _, _, each in found)])
        return ids, log_p, tail

    def _row(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One row as stored: [n, k + m], [n, k + m], [n]."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a text of {len(self)}")
        number, place = divmod(index, self._meta["shard_rows"])
        path = shard_path(self._folder, number)
        try:
            if number not in self._open:
                shard = open_shard(path, self._meta["key"])
                self._open[number] = shard, shard.get_tensor("start").tolist()
            shard, start = self._open[number]
            chosen = slice(start[place], start[place + 1])
            ids, log_p, tail = (shard.get_slice(name)[chosen] for name in ("ids", "log_p", "tail"))
        except (SafetensorError, IndexError) as error:
            raise damaged(path, str(error)) from error
        top = log_p[:, : log_p.shape[1] - self.drawn].float()
        wrong = (top.exp().sum(-1) + tail - 1).abs() > _MOST_ROUNDING
        if bool(wrong.any()) or (len(ids) and int(ids.long().max()) >= self._meta["vocabulary"]):
            raise damaged(path, f"row {index} holds no distribution")
        return ids, log_p, tail
