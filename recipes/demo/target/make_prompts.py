"""Write recipes/demo/prompts.jsonl: what the shipped target is asked to continue while its drafters are distilled.

    python recipes/demo/target/make_prompts.py

Excerpts from the files that the target was trained on, one a file, each beginning at a `def`, a
`class` or a decorator: none of a held-out file, so none that the `code` suite measures on. All have
LENGTH tokens: rows of one length are written fastest. Run it with the package versions that the
card names. Deterministic.
"""

from __future__ import annotations

import hashlib
import json
import re

from tokenizers import Tokenizer
from train import HERE, corpus_files, is_held_out, read_source

COUNT = 640
LENGTH = 32  # tokens
BEGINNING = re.compile(r" {0,4}(async def |def |class |@)")


def rank(*key: object) -> str:
    """A fixed shuffle: the same on every machine."""
    return hashlib.sha256(repr(key).encode()).hexdigest()


def excerpt(name: str, text: str, tokenizer: Tokenizer) -> str | None:
    """A prompt of LENGTH tokens, or None where no place in the file gives one."""
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines[:-8]) if BEGINNING.match(line)]
    for start in sorted(starts, key=lambda i: rank(name, i)):
        prompt = tokenizer.decode(tokenizer.encode("\n".join(lines[start : start + 8])).ids[:LENGTH])
        if len(tokenizer.encode(prompt).ids) == LENGTH:  # a cut text may be read as other tokens
            return prompt
    return None


def main() -> None:
    """Write COUNT different prompts."""
    files = sorted((f for f in corpus_files() if not is_held_out(f.name)), key=lambda f: rank(f.name))
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    prompts: dict[str, None] = {}
    for file in files:
        found = excerpt(file.name, read_source(file.path), tokenizer)
        if found:
            prompts[found] = None
        if len(prompts) == COUNT:
            break
    path = HERE.parent / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    print(f"{len(prompts)} prompts in {path.name}")


if __name__ == "__main__":
    main()
