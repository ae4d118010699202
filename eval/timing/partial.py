"""What a run has measured so far, on disk: one that was interrupted goes on where it stopped.

    <out>/.partial/<digest>/run.json        everything that decides the figures; the digest is of it
                            parity.json     audits and near-tie bounds
                            <block>.json    the cells of one block: all arms, interleaved, judged

Figures are kept only for the very same question: another plan, artifact, suite, machine, reader or line of code has
another digest, and begins anew. A block is the smallest thing that is kept, since the arms of one are compared.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import factory
from eval.measurement import Arm, Block, Cell, Timed
from eval.parity import Audit
from eval.timing.bench import Bounds
from factory.decoding.decoder import Generation
from factory.files.atomic import write_atomically
from factory.provenance import sha256_file, sha256_text

FOLDER = ".partial"

_LOG = logging.getLogger(__name__)


class Partial:
    """The folder of one run. Files that are damaged or of other arms are as if they were not there."""

    def __init__(self, out: Path, facts: dict[str, Any]) -> None:
        """`facts`: as JSON, everything but the code that decides what is measured. Removes what other runs left."""
        facts = json.loads(json.dumps({**facts, "code": code_digest()}))
        self._facts = facts
        self._folder = out / FOLDER / sha256_text(json.dumps(facts, sort_keys=True))[:16]
        self.kept = 0  # blocks that were found
        for other in sorted((out / FOLDER).glob("*")):
            if other != self._folder:
                _LOG.warning("%s: measured anew, since %s", out, _what_changed(_read(other / "run.json"), facts))
                shutil.rmtree(other, ignore_errors=True)
        if (self._folder / "run.json").is_file():
            _LOG.warning("%s: goes on where an evaluation was interrupted", out)

    def parity(self, arms: Sequence[Arm]) -> tuple[dict[Arm, Audit], Bounds] | None:
        """Audits and bounds, where they are known for exactly these arms."""
        try:
            record = _read(self._folder / "parity.json")
            audits = {
                Arm(**arm): Audit(**{**found, "detail": tuple(found["detail"])}) for arm, found in record["audits"]
            }
            bounds = {(batch, k): bound for batch, k, bound in record["bounds"]}
        except (KeyError, TypeError, ValueError):
            return None
        return (audits, bounds) if list(audits) == list(arms) else None

    def keep_parity(self, audits: dict[Arm, Audit], bounds: Bounds) -> None:
        """Write them."""
        pairs = [[asdict(arm), asdict(found)] for arm, found in audits.items()]
        self._write("parity.json", {"audits": pairs, "bounds": [[*key, bound] for key, bound in bounds.items()]})

    def cells(self, block: Block, arms: Sequence[Arm]) -> list[Cell] | None:
        """The cells of a block, where they are those of exactly these arms."""
        try:
            cells = [_cell(record) for record in _read(self._folder / _name(block))["cells"]]
        except (KeyError, TypeError, ValueError):
            return None
        if [cell.arm for cell in cells] != list(arms):
            return None
        self.kept += 1
        return cells

    def keep(self, block: Block, cells: Sequence[Cell]) -> None:
        """Write the cells of a block."""
        self._write(_name(block), {"block": asdict(block), "cells": [asdict(cell) for cell in cells]})

    def remove(self) -> None:
        """What was measured is in results.json now."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):  # another run's lies there too
            self._folder.parent.rmdir()

    def _write(self, name: str, record: dict[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if not (self._folder / "run.json").is_file():
            write_atomically(self._folder / "run.json", json.dumps(self._facts, indent=1))
        write_atomically(self._folder / name, json.dumps(record))


def code_digest() -> str:
    """Of every source file of this program: a git revision does not see what is not committed."""
    roots = (Path(__file__).resolve().parents[1], Path(factory.__file__).resolve().parent)
    files = [path for root in roots for path in sorted(root.rglob("*.py"))]
    return sha256_text("".join(f"{path.name} {sha256_file(path)}\n" for path in files))


def _name(block: Block) -> str:
    suite = sha256_text(block.suite)[:8]  # a file of the user's may be called anything
    return f"{block.stage}-{suite}-t{block.temperature:g}-b{block.batch}.json"


def _read(path: Path) -> dict[str, Any]:
    """{} where there is nothing that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _cell(record: dict[str, Any]) -> Cell:
    runs = [[_timed(one) for one in repeat] for repeat in record["runs"]]
    return Cell(**{**record, "arm": Arm(**record["arm"]), "runs": runs})


def _timed(record: dict[str, Any]) -> Timed:
    generations = [Generation(**one) for one in record["generations"]]
    return Timed(**{**record, "requests": tuple(record["requests"]), "generations": generations})


def _what_changed(old: dict[str, Any], new: dict[str, Any]) -> str:
    """In words: which of the facts are not those of the run that was interrupted."""
    changed = [key for key in new if old.get(key) != new[key]]
    if not old:
        return "what was measured before cannot be read"
    if "plan" in changed:
        before = old.get("plan") or {}
        changed += [f"plan.{key}" for key, value in new["plan"].items() if before.get(key) != value]
        changed.remove("plan")
    return f"another {', '.join(changed)} was asked for than before" if changed else "it was another run"
