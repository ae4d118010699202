"""The texts behind distillation.py: what the target writes after the demo's prompts, and what really follows there."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from factory.data.blocks import Row, TextBlocks, split_held_out, text_blocks
from factory.data.scribe import write_text
from factory.models import loading as models

DEMO = Path("recipes/demo")
SAMPLES, NEW_TOKENS, HELD_OUT = 1600, 112, 0.2
BEGINNING = re.compile(r" {0,4}(async def |def |class |@)")  # where the demo's prompts begin


@dataclass(frozen=True)
class Corpus:
    """Rows to learn from, of two origins, and the rows that all are judged on."""

    whole: TextBlocks  # all that the target wrote: a teacher cache is of that
    written: TextBlocks
    given: TextBlocks
    held_out: TextBlocks
    folder: Path


def gather(target: PreTrainedModel, folder: Path) -> Corpus:
    """Write or read them. The target's own training files must be there: the package versions that its card names."""
    tokenizer = models.load_tokenizer(DEMO / "target")
    lines = (DEMO / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines]
    folder.mkdir(parents=True, exist_ok=True)
    text = write_text(
        lambda: target,
        prompts,
        samples=SAMPLES,
        temperature=1.0,
        max_new_tokens=NEW_TOKENS,
        batch=64,
        seed=0,
        folder=folder / "text",
        progress=lambda done, total, what: print(f"\r{what} {done}/{total}", end="", file=sys.stderr),
    )
    training, held_out = split_held_out(text.prompt, HELD_OUT)
    given = text_blocks(_given(tokenizer, len(training), max(map(len, prompts))))
    return Corpus(text.rows, text.rows.rows(training), given, text.rows.rows(held_out), folder)


def _given(tokenizer: object, count: int, prompt: int) -> list[Row]:
    """As many rows of the target's own training files, each as long as a written one, none of a held-out file."""
    sys.path.insert(0, str(DEMO / "target"))
    from make_prompts import rank  # type: ignore[import-not-found]
    from train import corpus_files, is_held_out, read_source  # type: ignore[import-not-found]

    rows: list[Row] = []
    length = prompt + NEW_TOKENS
    for file in sorted((f for f in corpus_files() if not is_held_out(f.name)), key=lambda f: rank(f.name)):
        lines = read_source(file.path).splitlines()
        starts = [i for i, line in enumerate(lines[:-8]) if BEGINNING.match(line)]
        for start in sorted(starts, key=lambda i: rank(file.name, i))[:4]:
            ids = tokenizer("\n".join(lines[start : start + 60]))["input_ids"][:length]  # type: ignore[operator]
            if len(ids) == length:
                rows.append((ids, prompt))
        if len(rows) >= count:
            return rows[:count]
    raise SystemExit(f"only {len(rows)} of {count} rows: install the package versions that the target's card names")
