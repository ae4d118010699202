"""Readers whose model is not, or not only, where the decoding loop is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from factory.decoding.reader import Reader


class _Through(Reader):
    """A reader that asks another; what it is, it is by that one."""

    def __init__(self, reader: Reader, device: torch.device) -> None:
        self._reader = reader
        self.name, self.why, self.device = reader.name, reader.why, device
        self.context, self.vocabulary, self.lengths = reader.context, reader.vocabulary, reader.lengths

    def _run(self, *given: Any) -> torch.Tensor:
        raise NotImplementedError  # every pass goes through the other reader's own methods

    def start(self, rows: int, capacity: int) -> None:
        """An empty cache of that many rows."""
        self._reader.start(rows, capacity)
        self.lengths = self._reader.lengths

    def feed(self, tokens: torch.Tensor, count: list[int] | None = None) -> torch.Tensor:
        """Logits [B, T, V] after each of these tokens [B, T]."""
        logits = self._reader.feed(tokens.to(self._reader.device), count)
        self.lengths = self._reader.lengths
        return logits.to(self.device)

    def feed_last(self, tokens: torch.Tensor, count: list[int] | None = None) -> torch.Tensor:
        """Logits [B, V] after each row's last real token."""
        logits = self._reader.feed_last(tokens.to(self._reader.device), count)
        self.lengths = self._reader.lengths
        return logits.to(self.device)

    def rewind(self, lengths: list[int]) -> None:
        """Forget what is behind these lengths."""
        self._reader.rewind(lengths)
        self.lengths = self._reader.lengths

    def select(self, rows: list[int]) -> None:
        """Keep these rows, in this order."""
        self._reader.select(rows)
        self.lengths = self._reader.lengths


class ElsewhereReader(_Through):
    """A reader on another device than the loop's: tokens are moved there, and logits [B, T, V] back.

    Sampling, q and the draft are then all on the loop's device. That costs a copy of B x V logits for
    each drafted token, and whatever the reader could do within one graph.
    """


def on_device(reader: Reader, device: torch.device) -> Reader:
    """The reader as a loop on that device needs it: itself where it is there already."""
    return reader if _same(reader.device, device) else ElsewhereReader(reader, device)


class LeadingReader(_Through):
    """The first process's reader of a model that is divided over processes: what it does, the others do too.

    The loop, the sampling and the drafter are in this process alone, so nothing can differ between
    processes; before each pass the others are told which it is, and run their parts of it
    (`follow`). `told` brings an order to all of them. A call of the model without a cache is told
    likewise, so that it can be compared with what it says uncached.
    """

    def __init__(self, reader: Reader, model: PreTrainedModel, told: Callable[[Any], Any]) -> None:
        super().__init__(reader, reader.device)
        self._told = told

        def uncached(_model: Any, _given: Any, named: dict[str, Any]) -> None:
            if named.get("past_key_values") is None:
                told(("uncached", named["input_ids"].tolist()))

        model.register_forward_pre_hook(uncached, with_kwargs=True)

    def start(self, rows: int, capacity: int) -> None:
        """An empty cache of that many rows, in every process."""
        self._told(("start", rows, capacity))
        super().start(rows, capacity)

    def feed(self, tokens: torch.Tensor, count: list[int] | None = None) -> torch.Tensor:
        """Logits [B, T, V] after each of these tokens [B, T]; by all processes together."""
        self._told(("feed", tokens.tolist(), count))
        return super().feed(tokens, count)

    def feed_last(self, tokens: torch.Tensor, count: list[int] | None = None) -> torch.Tensor:
        """Logits [B, V] after each row's last real token; by all processes together."""
        self._told(("feed_last", tokens.tolist(), count))
        return super().feed_last(tokens, count)

    def rewind(self, lengths: list[int]) -> None:
        """Forget what is behind these lengths, in every process."""
        self._told(("rewind", lengths))
        super().rewind(lengths)

    def select(self, rows: list[int]) -> None:
        """Keep these rows, in this order, in every process."""
        self._told(("select", rows))
        super().select(rows)


@torch.inference_mode()
def follow(reader: Reader, model: PreTrainedModel, told: Callable[[Any], Any]) -> None:
    """Run this process's part of every pass that the first one's LeadingReader tells of, until it tells None."""
    while (order := told(None)) is not None:
        what, *given = order
        if what == "uncached":
            model(input_ids=torch.tensor(given[0], device=reader.device), use_cache=False)
        elif what in ("feed", "feed_last"):
            tokens, count = given
            getattr(reader, what)(torch.tensor(tokens, dtype=torch.long, device=reader.device), count)
        else:
            getattr(reader, what)(*given)


def _same(left: torch.device, right: torch.device) -> bool:
    """Whether two names are of one device: `cuda` is the current one."""
    if left.type != right.type or left.type != "cuda":
        return left.type == right.type
    current = torch.cuda.current_device()
    return (current if left.index is None else left.index) == (current if right.index is None else right.index)
