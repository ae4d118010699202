"""What a losslessness certificate says: the record as it is stored, its verdict, and the table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from rich.console import Group
from rich.text import Text

from eval.lossless.law import Fit, holm
from eval.measurement import K
from eval.parity import Audit
from factory.card import certified
from factory.decoding.sampling import Sampling
from factory.fitting import Fitted

SCHEMA_VERSION = 1
LEAST_PROMPTS = 200  # distinct ones that greedy parity is checked on
LEVEL = 0.01  # of all sampling tests of a certificate together: a sound decoder fails one certificate in a hundred

Facts = dict[str, Any]


def audit_row(found: Audit, k: K | None, reader: str, drafter_reader: str | None) -> Facts:
    """One way of writing, compared; k None is the target alone, compared with transformers."""
    return {"k": k, "reader": reader, "drafter_reader": drafter_reader, **found.facts()}


def law_rows(fits: Sequence[tuple[Facts, Fit, Fit]]) -> list[Facts]:
    """What was drawn, how it fits, and how plain decoding's own draws fit the same cells; Holm over all of them."""
    adjusted = holm([speculative.p_value for _, speculative, _ in fits])
    return [
        {
            **given,
            **speculative.facts(),
            "p_adjusted": p,
            "plain_p": plain.p_value,
            "plain_total_variation": plain.total_variation,
        }
        for (given, speculative, plain), p in zip(fits, adjusted, strict=True)
    ]


def verdict(certificate: Facts) -> Facts:
    """`lossless`, and the first failing check in words; what was not run is said in `not_run`, and fails nothing."""
    failing = _failing(certificate)
    exact = certificate["float64"]
    return {
        "lossless": failing is None,
        "reason": failing or "every check that was run passed",
        "not_run": None if exact["ran"] else f"float64 parity was not run, because {exact['why_not']}",
    }


def _failing(certificate: Facts) -> str | None:
    served = certificate["served"]
    for dtype, rows in (("float64", certificate["float64"]["rows"]), (served["dtype"], served["rows"])):
        for row in rows:
            if not row["passed"]:
                wrong = row["divergences"] - row["near_ties"]
                other = "transformers' uncached forward pass" if row["k"] is None else "the target alone"
                return (
                    f"{dtype}, reader {row['reader']}: {_who(row['k'])} differs from {other} in {wrong} of "
                    f"{row['outputs']} outputs; {'; '.join(row['detail'][:1])}"
                )
    sampled = certificate["sampling"]["rows"]
    if not any(row["cells"] > 1 for row in sampled):
        return "no sampling test had more than one cell, so nothing was tested: give other prompts with --prompts"
    for row in sampled:
        where = f"sampling at temperature {row['temperature']}{processors(row)}, k = {row['k']}"
        if row["impossible"]:
            return f"{where}: {row['impossible']} of {row['draws']} texts are such as the target never writes"
        if row["p_adjusted"] <= certificate["sampling"]["level"]:
            return (
                f"{where}: the texts do not follow the target's law, chi-square {row['chi_square']:.1f} in "
                f"{row['cells']} cells, p {row['p_adjusted']:.2g} after Holm's adjustment"
            )
    prompts = certificate["prompts"]["distinct"]
    if prompts < LEAST_PROMPTS:
        return (
            f"only {prompts} distinct prompts could be made, of {LEAST_PROMPTS} that a certificate needs: give more or "
            "longer ones with --prompts"
        )
    return None


def processors(row: Facts) -> str:
    """What a sampling test had on beside its temperature."""
    known = [field for field in fields(Sampling) if field.name != "temperature"]
    on = [f"{field.name.replace('_', ' ')} {row[field.name]}" for field in known if row[field.name] != field.default]
    return "".join(f", {words}" for words in on)


def _who(k: K | None) -> str:
    return "plain decoding" if k is None else f"k = {k}"


def terminal(certificate: Facts) -> Group:
    """A table of what was found for each k, and what it comes to."""
    served = certificate["served"]
    heads = ["", "float64 outputs equal", f"{served['dtype']} equal", "near-ties", "bound"]
    heads += ["tests of the law", "smallest p, Holm", "largest TV", "exact draws'", "plain decoding's"]
    rows = []
    for k in (None, *certificate["ks"]):
        audited = next(row for row in served["rows"] if row["k"] == k)
        tests = [row for row in certificate["sampling"]["rows"] if row["k"] == k]
        widest = max(tests, key=lambda row: float(row["total_variation"]), default=None)
        cells = [
            _who(k),
            _equal([row for row in certificate["float64"]["rows"] if row["k"] == k]) or "not run",
            _equal([audited]),
            str(audited["near_ties"]),
            "none" if audited["near_tie_bound"] is None else f"{audited['near_tie_bound']:.2g}",
            str(len(tests)) if tests else "",
            f"{min(row['p_adjusted'] for row in tests):.2g}" if tests else "",
            *(
                f"{widest[key]:.3f}" if widest else ""
                for key in ("total_variation", "total_variation_expected", "plain_total_variation")
            ),
        ]
        rows.append(cells)
    spare = ("plain decoding's", "exact draws'", "largest TV", "bound", "tests of the law")
    table = Fitted(f"{certificate['artifact']}: losslessness", heads, rows, spare=spare)
    return Group(table, *(Text(line) for line in certified(certificate)))


def _equal(rows: Sequence[Facts]) -> str:
    return " ".join(f"{row['outputs'] - row['divergences']}/{row['outputs']} {row['reader']}" for row in rows)
