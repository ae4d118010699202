"""What may be published: a drafter that was evaluated, with the target's own outputs, and surely faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eval.verdict.rows import interval, k_words, mode
from factory.artifact import Artifact
from factory.errors import FactoryError
from factory.evidence import Row, best_row, lower_bound


class PublishError(FactoryError):
    """What must not, or cannot, be published, with the figure or the answer that says so."""


@dataclass(frozen=True)
class Standing:
    """What is claimed of a drafter: the evaluation, its row, and why it is published where that is not enough."""

    results: dict[str, Any]
    row: Row
    excuse: str | None  # the reason of --even-if-slower, where it was needed

    @property
    def faster(self) -> bool:
        """Whether the speedup is surely above 1."""
        return lower_bound(self.row) > 1


def standing(artifact: Artifact, even_if_slower: str | None = None) -> Standing:
    """The last evaluation of this very artifact and the row that speaks for it. Raises PublishError.

    A reason lets a drafter pass that is not shown to be faster; nothing lets one pass whose outputs were not the
    target's own.
    """
    if even_if_slower is not None and not even_if_slower.strip():
        raise PublishError("--even-if-slower: wants a reason, which goes onto the card; write what it is good for")
    evals = artifact.evals()
    if not evals:
        raise PublishError(
            f"{artifact.folder}: not evaluated yet, or only before it was built again; {_again(artifact)}"
        )
    results = evals[-1]
    row = best_row(results, artifact.name)
    if row is None:
        raise PublishError(
            f"{artifact.folder}: its last evaluation measured no fixed k of it, so there is none to recommend; "
            f"give the plan `ks`, and {_again(artifact)}"
        )
    _require_lossless(artifact, results)
    found = Standing(results, row, " ".join(even_if_slower.split()) if even_if_slower else None)
    if found.faster:
        return Standing(results, row, None)
    if found.excuse is None:
        raise PublishError(f"{artifact.folder}: {_too_slow(row)}; {_remedy(artifact)}")
    return found


def prompts_words(row: Row) -> str:
    """`16 fresh prompts`, or those that k was chosen by."""
    return f"{row['prompts']} {'fresh prompts' if row['prompt_set'] == 'confirm' else 'prompts to choose by'}"


def _require_lossless(artifact: Artifact, results: dict[str, Any]) -> None:
    """Every row of it, at every k, and every check of parity; and the certificate, where one is about this build."""
    faults = []
    for one in results["candidates"]:
        if one["artifact"] == artifact.name and one.get("matches_target") is not True:
            said = (
                "not all outputs were" if one.get("matches_target") is False else "it is not known whether outputs were"
            )
            faults.append(f"at k = {k_words(one)}, on {prompts_words(one)}, {said} the target's own")
    faults += [  # the former pool the plan's first batch alone
        f"at k = {k_words(one)}, {one['suite']}, {mode(one['temperature'])}, batch {one.get('batch') or 1}, not all "
        "outputs were the target's own"
        for one in results["rows"]
        if one["artifact"] == artifact.name and one["matches_target"] is False
    ]
    checked = [one for one in results.get("parity", []) if one["artifact"] == artifact.name]
    if not checked:
        faults.append("parity was not checked")
    faults += [
        f"at k = {one['k']}, {one['divergences']} of {one['outputs']} outputs in {one['dtype']} were not the target's"
        for one in checked
        if not one["passed"]
    ]
    certificate = artifact.certificate()
    if certificate and certificate["current"] and not certificate["verdict"]["lossless"]:
        faults.append(f"its certificate says: {certificate['verdict']['reason']}")
    if faults:
        raise PublishError(
            f"{artifact.folder}: not shown to be lossless: {'; '.join(faults)}. No reason lets such a drafter be "
            f"published; `factory eval {artifact.folder} --certify` says more"
        )


def _too_slow(row: Row) -> str:
    measured = f"its best row, k = {row['k']} on {prompts_words(row)}, measured {interval(row)}"
    if row["speedup_low"] is None:
        return f"{measured}, one observation, which has no interval and shows nothing"
    return f"{measured}: the lower bound {row['speedup_low']:.2f} is not above 1, so it is not shown to be faster"


def _remedy(artifact: Artifact) -> str:
    return (
        f"measure it with more prompts or repeats (`factory eval {artifact.folder} --plan PLAN`), make a better one, "
        "or publish it all the same with --even-if-slower REASON, which goes onto the card"
    )


def _again(artifact: Artifact) -> str:
    return f"run `factory eval {artifact.folder}` first"
