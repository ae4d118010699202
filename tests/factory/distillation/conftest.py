from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from factory.data.blocks import TextBlocks, text_blocks
from factory.stages import Distill, Given


def silent(_done: int, _total: int, _what: str) -> None:
    pass


def text(rows: int, seed: int, longest: int = 14) -> TextBlocks:
    """Random rows of several lengths, each with a prompt of two tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, longest, (rows,), generator=generator).tolist()
    return text_blocks([(torch.randint(3, 96, (length,), generator=generator).tolist(), 2) for length in lengths])


def stage_of(**fields: Any) -> Distill:
    """As a recipe would say it."""
    return Distill.model_validate_json(json.dumps({"kind": "distill", **fields}))


@pytest.fixture
def given_of(tmp_path: Path) -> Callable[..., Given]:
    """`given_of(target, rows=24, held_out=6, name="a")`: what a build hands over, with a folder of its own."""

    def make(target: Any, rows: int = 24, held_out: int = 6, name: str = "a", **more: Any) -> Given:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        held = text(held_out, 1) if held_out else None
        return Given(lambda: target, text(rows, 0), held, 0, folder, more.pop("progress", silent), **more)

    return make
