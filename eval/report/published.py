"""What was published of a drafter, or measured of it elsewhere, beside what this evaluation measured here.

Speed depends on hardware and prompts, acceptance on prompts alone: the table has both, and says where they differ.
Published figures are anybody's: what is no number is left out, and all text is escaped where it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from math import isfinite
from typing import Any

from rich.console import Group
from rich.text import Text

from eval.measurement import CONFIRM
from eval.report.tables import table
from eval.verdict.rows import Row, interval
from factory.artifact import Artifact
from factory.evidence import rows_at
from factory.fitting import Fitted
from factory.wording import hardware_words

HEADING = "Published, and measured here"
_FIGURES = ("speedup", "speedup_low", "speedup_high", "alpha")
_FIGURED = tuple(f"{figure} {place}" for figure in ("speedup", "alpha", "tau") for place in ("there", "here"))
_HEAD = ("drafter", "k", "prompts", "published on", *_FIGURED)
_TEXTS = 4  # columns of words


def published_figures(artifacts: Sequence[Artifact], results: dict[str, Any]) -> list[dict[str, Any]]:
    """For results.json: of each drafter what evaluations made elsewhere say, the newest of each device.

    Those are the ones that came with a pulled drafter; of one that was not pulled, those of other hardware.
    """
    found = []
    for artifact in artifacts:
        pulled = artifact.pulled()
        newest: dict[str, dict[str, Any]] = {}
        for path, one in artifact.eval_files().items():
            theirs = one.get("hardware")
            if not isinstance(theirs, dict):
                continue
            device = hardware_words(theirs)
            if (path.name in pulled["evals"]) if pulled else (device != hardware_words(results["hardware"])):
                newest[device] = one
        origin = {key: pulled[key] if pulled else None for key in ("repository", "commit")}
        for where, one in newest.items():
            setting = {"device": where, "dtype": _text(one, "target", "dtype"), "suites": _suites(one)}
            rows = [_figures(one, artifact.name, row) for row in _own(one, artifact.name)]
            found.append({"artifact": artifact.name, **origin, **setting, "rows": rows})
    return found


def published_section(results: dict[str, Any]) -> str:
    """The part of the page; nothing where no evaluation was made elsewhere."""
    lines = list(_lines(results))
    if not lines:
        return ""
    words = "".join(f" {escape(note)}" for note in notes(results))
    return f"""{table(HEADING, _HEAD, lines, _TEXTS)}
<p class="soft">Speedup over the target alone, with its 95 % interval; alpha: the share of examined guesses that were
accepted; tau: tokens for each pass of the target.{words}</p>
"""


def published_table(results: dict[str, Any]) -> Group | None:
    """The same for the terminal."""
    lines = list(_lines(results))
    if not lines:
        return None
    spare = ("tau there", "tau here", "published on", "alpha there", "alpha here")
    table = Fitted(HEADING, _HEAD, lines, words=_TEXTS, spare=spare)
    return Group(table, *(Text(note) for note in notes(results)))


def compared(results: dict[str, Any]) -> list[dict[str, Any]]:
    """For `--json`: every pair of figures, those that only one side has among them."""
    return [
        {"artifact": one["artifact"], "repository": one["repository"], "k": k, "prompt_set": stage}
        | {"published": {"device": one["device"], **there} if there else None, "here": here}
        for one in results.get("published") or []
        for (k, stage), there, here in _pairs(one, results)
    ]


def notes(results: dict[str, Any]) -> list[str]:
    """Where it was published, what this machine is, and what else differs between the two."""
    here = f"Here: {hardware_words(results['hardware'])}, {results['target']['dtype']}."
    said = dict.fromkeys([here])
    for one in results.get("published") or []:
        if one["repository"]:
            said[f"Published as {one['repository']}, commit {str(one['commit'])[:12]}."] = None
        if one["suites"] != _suites(results):
            theirs = ", ".join(name for name, _ in one["suites"]) or "unknown"
            said[f"The figures of {one['device']} are of other prompts ({theirs}), so alpha differs too."] = None
        if one["dtype"] != results["target"]["dtype"]:
            said[f"Those of {one['device']} are of {one['dtype']}."] = None
    return list(said)


def _lines(results: dict[str, Any]) -> Iterator[list[str]]:
    for one in results.get("published") or []:
        for (k, stage), there, here in _pairs(one, results):
            cells = [one["artifact"], str(k), "fresh" if stage == CONFIRM else "to choose by", one["device"]]
            pairs = [(interval(side) if side else "") for side in (there, here)]
            for key in ("alpha", "tau"):
                pairs += ["" if not side or side[key] is None else f"{side[key]:.2f}" for side in (there, here)]
            yield [*cells, *pairs]


def _pairs(one: dict[str, Any], results: dict[str, Any]) -> Iterator[tuple[tuple[Any, Any], Row | None, Row | None]]:
    """(k, prompt set), the figures there, the figures here."""
    theirs = {(row["k"], row["prompt_set"]): row for row in one["rows"]}
    name = one["artifact"]
    ours = {(row["k"], row["prompt_set"]): _figures(results, name, row) for row in _own(results, name)}
    for key in sorted({**theirs, **ours}, key=lambda key: (key[1], str(key[0]).rjust(4))):
        yield key, theirs.get(key), ours.get(key)


def _own(results: dict[str, Any], name: str) -> list[Row]:
    """The drafter's pooled rows that have a speedup."""
    rows = results.get("candidates")
    mine = (
        [row for row in rows if isinstance(row, dict) and row.get("artifact") == name] if isinstance(rows, list) else []
    )
    return [row for row in mine if _number(row.get("speedup")) is not None and isinstance(row.get("k"), int | str)]


def _figures(results: dict[str, Any], name: str, row: Row) -> Row:
    figures = {key: _number(row.get(key)) for key in _FIGURES}
    if figures["speedup_high"] is None:
        figures["speedup_low"] = None
    try:
        rows = rows_at(results, name, row)
        tau = sum(one["new_tokens"] for one in rows) / sum(one["target_passes"] for one in rows)
    except (KeyError, TypeError, ArithmeticError, AttributeError):
        tau = None
    return {"k": row["k"], "prompt_set": str(row.get("prompt_set")), **figures, "tau": _number(tau)}


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) and isfinite(value) else None
    except OverflowError:  # a whole number of hundreds of digits, which JSON allows
        return None


def _text(record: dict[str, Any], *keys: str) -> str | None:
    found: Any = record
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def _suites(results: dict[str, Any]) -> list[list[str]]:
    """Names and sums of the prompts."""
    suites = results.get("suites")
    known = [one for one in suites if isinstance(one, dict)] if isinstance(suites, list) else []
    return sorted([str(one.get("name")), str(one.get("sha256"))] for one in known)
