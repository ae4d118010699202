"""Write code.jsonl: prompts from the source files that the shipped target never saw.

    python eval/prompts/make_code_suite.py

The files are those that recipes/demo/target/corpus.json names as held out; they are read from the
installed torch and transformers and from the standard library, so run it with the versions named
there. A prompt begins at a `def`, a `class` or a decorator and ends at a line's end, 150 to 280
characters later: 60 to 120 of the target's tokens. One from a file, so that the prompts used to
choose and those used to confirm share none. Deterministic: places and order are picked by hash.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORPUS = HERE.parent.parent / "recipes" / "demo" / "target" / "corpus.json"
SUITE, VERSION, COUNT = "code", 1, 64
SHORTEST, LONGEST = 150, 280  # characters
LINES_AFTER = 12  # the file goes on: a prompt that ends with its file is answered by one token, EOS
BEGINNING = re.compile(r" {0,4}(async def |def |class |@)")


def source_path(name: str) -> Path:
    """The installed file of a corpus name such as `torch/nn/x.py`."""
    source, _, relative = name.partition("/")
    if source == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"]) / relative
    spec = importlib.util.find_spec(source)  # finds the package without importing it
    if spec is None or spec.origin is None:
        raise SystemExit(f"{source} is not installed: corpus.json names its version")
    return Path(spec.origin).parent / relative


def rank(*key: object) -> str:
    """A fixed shuffle: the same on every machine."""
    return hashlib.sha256(repr(key).encode()).hexdigest()


def excerpt(name: str, text: str) -> dict[str, str] | None:
    """A prompt of this file, or None where no place in it is long enough."""
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if BEGINNING.match(line)]
    last = len(lines) - LINES_AFTER
    for start in sorted(starts, key=lambda i: rank(name, i)):
        end, size = start, 0
        while end < len(lines) and size + len(lines[end]) + 1 <= LONGEST:
            size += len(lines[end]) + 1
            end += 1
        while end > start and not lines[end - 1].strip():
            end -= 1
        prompt = "\n".join(lines[start:end])
        if len(prompt) >= SHORTEST and end <= last:
            return {"prompt": prompt, "source": f"{name}:{start + 1}"}
    return None


def suite(names: list[str]) -> list[dict[str, str]]:
    """COUNT prompts in a fixed, shuffled order: any first n and last m are as diverse as the whole."""
    ordered = sorted((name for name in names if "/_vendor/" not in name), key=rank)  # torch's own code only
    found = (excerpt(name, source_path(name).read_text(encoding="utf-8")) for name in ordered)
    return [row for row in found if row is not None][:COUNT]


def main() -> None:
    """Write code.jsonl and its line in index.json."""
    names = json.loads(CORPUS.read_text())["held_out_files"]
    rows = suite(names)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (HERE / f"{SUITE}.jsonl").write_text(text, encoding="utf-8")
    index_path = HERE / "index.json"
    index = json.loads(index_path.read_text()) if index_path.exists() else {}
    index[SUITE] = {"version": VERSION, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    index_path.write_text(json.dumps(index, indent=1) + "\n")
    print(f"{len(rows)} prompts of {len(names)} held-out files")


if __name__ == "__main__":
    main()
