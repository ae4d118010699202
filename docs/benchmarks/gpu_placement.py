"""A target over two GPUs with its drafter on one of them: needs two, and is skipped by name elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from decoder_pairs import SkippedError
from decoder_passes import Row
from gpu_pairs import Bench


def placement(bench: Bench) -> Iterator[Row]:
    """Raises SkippedError with fewer than two GPUs."""
    count = torch.cuda.device_count() if bench.cuda else 0
    if count < 2:
        raise SkippedError(f"needs two GPUs, and there {'is' if count == 1 else 'are'} {count or 'none'}")
    yield from ()
