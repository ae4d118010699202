"""One process decodes with a model that is divided over several: it leads, the others follow pass by pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from factory.decoding.reader import Reader


class LeadingReader(Reader):
    """The first process's reader of a model that is divided over processes: what it does, the others do too.

    The loop, the sampling and the drafter are in this process alone, so nothing can differ between
    processes; before each pass the others are told which it is, and run their parts of it
    (`follow`). `told` brings an order to all of them. A call of the model without a cache is told
    likewise, so that it can be compared with what it says uncached.
    """

    def __init__(self, reader: Reader, model: PreTrainedModel, told: Callable[[Any], Any]) -> None:
        self._reader, self._told = reader, told
        self.name, self.why, self.device = reader.name, reader.why, reader.device
        self.context, self.vocabulary, self.lengths = reader.context, reader.vocabulary, reader.lengths

        def uncached(_model: Any, _given: Any, named: dict[str, Any]) -> None:
            if named.get("past_key_values") is None:
                told(("uncached", named["input_ids"].tolist()))

        model.register_forward_pre_hook(uncached, with_kwargs=True)

    def start(self, rows: int, capacity: int) -> None:
        """An empty cache of that many rows, in every process."""
        self._all("start", rows, capacity)

    def feed(self, tokens: torch.Tensor, count: list[int] | None = None) -> torch.Tensor:
        """Logits [B, T, V] after each of these tokens [B, T]; by all processes together."""
        logits: torch.Tensor = self._all("feed", tokens, count)
        return logits

    def feed_last(self, tokens: torch.Tensor, count: list[int] | None = None) -> torch.Tensor:
        """Logits [B, V] after each row's last real token; by all processes together."""
        logits: torch.Tensor = self._all("feed_last", tokens, count)
        return logits

    def rewind(self, lengths: list[int]) -> None:
        """Forget what is behind these lengths, in every process."""
        self._all("rewind", lengths)

    def select(self, rows: list[int]) -> None:
        """Keep these rows, in this order, in every process."""
        self._all("select", rows)

    def _all(self, what: str, *given: Any) -> Any:
        self._told((what, *(part.tolist() if isinstance(part, torch.Tensor) else part for part in given)))
        found = getattr(self._reader, what)(*given)
        self.lengths = self._reader.lengths
        return found

    def _run(self, *given: Any) -> torch.Tensor:
        raise NotImplementedError("every pass goes through the reader that is led")


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
