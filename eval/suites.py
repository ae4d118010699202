"""Prompt suites as versioned data, and the two disjoint sets of prompts that a run is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.data.prompts import read_prompts
from factory.errors import DataError
from factory.provenance import sha256_file
from factory.wording import visible

PROMPTS = Path(__file__).resolve().parent / "prompts"
INDEX = "index.json"


@dataclass(frozen=True)
class Suite:
    """Prompts in a fixed order, and what pins them."""

    name: str
    version: int | None  # None for a file of the user's own
    sha256: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Prompt:
    """A prompt in the target's tokens. `request` keys its noise: its place in the suite."""

    request: int
    ids: list[int]


@dataclass(frozen=True)
class PromptSets:
    """What of a suite is used: one set to choose by, another to confirm with; no prompt is in both."""

    suite: Suite
    choose: list[Prompt]
    confirm: list[Prompt]
    skipped: int  # too long for the context, or empty
    duplicates: int  # said before: twice the same prompt is no second observation

    def facts(self) -> dict[str, Any]:
        """What results.json says about it."""
        return {
            "name": self.suite.name,
            "version": self.suite.version,
            "sha256": self.suite.sha256,
            "prompts": len(self.choose),
            "confirm_prompts": len(self.confirm),
            "skipped_prompts": self.skipped,
            "duplicate_prompts": self.duplicates,
        }


def load_suite(name: str, folder: Path = PROMPTS) -> Suite:
    """A shipped suite, its bytes compared with the index. Raises DataError where they differ."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    if name not in index:
        raise DataError(f"no prompt suite {name!r}; shipped: {', '.join(sorted(index))}; own prompts: --prompts FILE")
    path = folder / f"{name}.jsonl"
    raw = path.read_bytes() if path.is_file() else b""
    digest = hashlib.sha256(raw).hexdigest()
    if digest != index[name]["sha256"]:
        raise DataError(
            f"{path}: not the suite {name!r} version {index[name]['version']} (sha256 {digest[:12]}..., "
            f"expected {index[name]['sha256'][:12]}...); install the package again, or use --prompts FILE"
        )
    prompts = tuple(json.loads(line)["prompt"] for line in raw.decode("utf-8").splitlines())
    return Suite(name, index[name]["version"], digest, prompts)


def suite_from_file(path: Path) -> Suite:
    """The user's own prompts: JSONL with `prompt` or Spec-Bench's `turns`, or plain lines. Raises DataError."""
    return Suite(visible(path.stem), None, sha256_file(path) if path.is_file() else "", tuple(read_prompts(path)))


def prompt_sets(
    suite: Suite, encode: Callable[[str], Sequence[int]], room: int, choose: int, confirm: int
) -> PromptSets:
    """The first `choose` prompts that fit and the last `confirm`; `room` is the longest prompt in tokens.

    With fewer prompts than asked for, both sets shrink in proportion. Raises DataError where fewer
    than two prompts fit: one to choose by and another to confirm with is the least.
    """
    fitting: dict[tuple[int, ...], Prompt] = {}
    skipped = duplicates = 0
    for request, text in enumerate(suite.prompts):
        ids = [int(token) for token in encode(text)]
        if not 0 < len(ids) <= room:
            skipped += 1
        elif tuple(ids) in fitting:
            duplicates += 1
        else:
            fitting[tuple(ids)] = Prompt(request, ids)
    prompts = list(fitting.values())
    if len(prompts) < 2:
        raise DataError(
            f"suite {suite.name}: {len(prompts)} different prompts fit ({skipped} skipped: the context leaves room for "
            f"{room} tokens of prompt); at least 2 are needed. Give shorter or more prompts, or lower max_new_tokens"
        )
    if choose + confirm > len(prompts):
        choose = max(1, len(prompts) * choose // (choose + confirm))
        confirm = len(prompts) - choose
    return PromptSets(suite, prompts[:choose], prompts[len(prompts) - confirm :], skipped, duplicates)
