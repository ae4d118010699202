"""Parts of the report, as HTML: where the time goes, forecasts beside measurements, the roofline, the trainings."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from eval.measurement import CHOOSE, MODEL
from eval.report.bars import Bar, css, stacked
from eval.report.curves import loss_chart, overlap_chart, speedup_chart
from eval.report.plots import SERIES, Level
from eval.report.roofline_plot import name_of, roofline_plot
from eval.report.svg import si
from eval.verdict.account import PARTS, Account, accounts
from eval.verdict.rows import Row, drafter_name, interval
from eval.verdict.trainings import Training

Results = dict[str, Any]


def time_section(results: Results) -> str:
    """Stacked bars of a round and of a new token, one pair of figures for each batch."""
    found = accounts(results["rows"])
    if not found:
        return ""
    present = [part for part in PARTS.values() if any(part in one.seconds for one in found)]
    legend = "".join(f'<span><i style="background: var({css(part)})"></i>{escape(part)}</span>' for part in present)
    figures = []
    for batch in dict.fromkeys(one.batch for one in found):
        mine = [one for one in found if one.batch == batch]
        where = f", batch {batch}" if batch > 1 or len({one.batch for one in found}) > 1 else ""
        rounds = [Bar(_name(one), _milliseconds(one.seconds)) for one in mine]
        tokens = [Bar(_name(one), _milliseconds(one.per_token_s())) for one in mine]
        figures.append(_figure(f"A round{where}", stacked(rounds, "ms", f"time of a round{where}")))
        figures.append(_figure(f"A new token{where}", stacked(tokens, "ms", f"time of a new token{where}")))
    return f"""<h2>Where the time goes</h2>
<p class="legend">{legend}</p>
<div class="plots">{"".join(figures)}</div>
<p class="soft">From the second token on, suites and temperatures pooled, on the prompts to choose by. A round of the
target alone is one step. Accept: sampling, acceptance and rewinding; host: what nothing else covers.</p>
"""


def _name(one: Account) -> str:
    name = drafter_name({"artifact": one.artifact, "drafter": one.drafter})
    return name if one.k is None else f"{name}, k = {one.k}"


def _milliseconds(seconds: dict[str, float]) -> dict[str, float]:
    return {part: 1e3 * spent for part, spent in seconds.items()}


def _figure(title: str, svg: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{svg}</figure>"


def speedup_section(results: Results) -> str:
    """Forecast, modelled and measured speedup of every row that has a model of either kind."""
    rows = [row for row in results["rows"] if row["drafter"] is not None and _models(row)]
    if not rows:
        return ""
    head = [
        "drafter",
        "k",
        "suite",
        "T",
        "batch",
        "prompts to",
        "forecast",
        "modelled",
        "measured",
        "measured / forecast",
    ]
    lines = []
    for row in rows:
        forecast, modelled = row.get("forecast_speedup"), row.get("modelled_speedup")
        said = [drafter_name(row), row["k"], row["suite"], f"{row['temperature']:g}", row["batch"], row["prompt_set"]]
        said += [_number(forecast), _number(modelled), interval(row)]
        said += [f"{row['speedup'] / forecast - 1:+.0%}" if forecast else ""]
        lines.append(said)
    return f"""<h3>Forecast, modelled, measured</h3>
<div class="wide">{table(head, lines, texts=6)}</div>
"""


def _models(row: Row) -> bool:
    return row.get("forecast_speedup") is not None or row.get("modelled_speedup") is not None


def roofline_section(results: Results) -> str:
    """The plot and its table; nothing for results that know no roofline."""
    found = results.get("roofline")
    if not found or not found["steps"]:
        return ""
    head = [
        "step",
        "tokens read",
        "streamed",
        "at",
        "operations",
        "operations / byte",
        "floor ms",
        "measured ms",
        "floor reached",
    ]
    lines = [
        [
            name_of(step),
            f"{step['tokens']:.2f}",
            si(step["bytes"], "B"),
            si(step["bandwidth_bytes_per_s"], "B/s"),
            si(step["operations"], "FLOP"),
            f"{step['intensity_flop_per_byte']:.2f}",
            f"{1e3 * step['floor_s']:.3f}",
            f"{1e3 * step['measured_s']:.3f}",
            f"{step['floor_share']:.0%}",
            step["bound"],
        ]
        for step in found["steps"]
    ]
    roofs = (
        f"{si(found['bandwidth_bytes_per_s'], 'B/s')} and {si(found['peak_flop_per_s'], 'FLOP/s')} in {found['dtype']}"
    )
    return f"""<h2>How near each step comes to what the device could do</h2>
<figure class="broad">{roofline_plot(found)}</figure>
<div class="wide">{table([*head, "bound by"], lines, texts=1)}</div>
<p class="soft">The roofs are {escape(roofs)}: {escape(results["profile"]["words"])}.</p>
"""


def training_section(results: Results, names: Sequence[str]) -> str:
    """Curves of the drafters' distillations and what these brought; nothing for results that know of none.

    `names` are the drafters in the order of their colours.
    """
    found = results.get("trainings") or []
    if not found:
        return ""
    charts = [
        ("What training brought", overlap_chart(found, names), _LOOKS),
        ("What that is worth", speedup_chart(found, names, _measured(results["candidates"])), _WORTH),
        ("What it learned by", loss_chart(found, names), _LOSS),
    ]
    drawn = [(title, svg, caption) for title, svg, caption in charts if svg]
    trained = [(place, name) for place, name in enumerate(names) if any(one["artifact"] == name for one in found)]
    legend = "".join(
        f'<span><i style="background: var(--series-{place % SERIES})"></i>{escape(name)}</span>'
        for place, name in trained
    )
    head = ["drafter", "stage", "steps", "kept step", "tokens", "held-out overlap", "held-out forward KL"]
    lines = [
        [
            one["artifact"],
            f"{one['stage'] + 1}: {one['kind']}",
            _steps(one),
            "" if one["kept_step"] is None else one["kept_step"],
            "" if one["trained_tokens"] is None else si(one["trained_tokens"], "").strip(),
            _change(one, "overlap"),
            _change(one, "forward_kl"),
        ]
        for one in found
    ]
    return f"""<h2>Training</h2>
<p class="legend">{legend}</p>
<div class="plots">{"".join(_figure(title, svg) for title, svg, _ in drawn)}</div>
<p class="soft">{" ".join(caption for _, _, caption in drawn)}</p>
<div class="wide">{table(head, lines, texts=3)}</div>
"""


_LOOKS = """Overlap: each mark is a look at held-out text, and the look whose weights were kept has a ring; a dotted
upright is where a drafter is distilled once more."""
_WORTH = """Modelled: the speedup that the drafter's sizes promise on the machine that trained it, were that overlap the
acceptance; dashed, what was measured here at its best k, on the prompts to choose by."""
_LOSS = "Loss: thin as it was, thick in means; losses of different kinds do not compare."


def _measured(candidates: Sequence[Row]) -> dict[str, Level]:
    """The best of each drafter on the prompts to choose by, as the verdict ranks them."""
    best: dict[str, Row] = {}
    for row in candidates:
        if row["prompt_set"] == CHOOSE and row["drafter"] == MODEL and row.get("matches_target") is not False:
            best[row["artifact"]] = max(best.get(row["artifact"], row), row, key=_rank)
    return {
        name: Level(row["speedup"], f"measured {row['speedup']:.2f}x, k = {row['k']}") for name, row in best.items()
    }


def _rank(row: Row) -> tuple[float, float]:
    return row["speedup_low"] or 0.0, row["speedup"]


def _steps(one: Training) -> str:
    """How many; where fewer than planned, of how many."""
    if one["planned_steps"] is None or one["steps"] == one["planned_steps"]:
        return f"{one['steps']}"
    return f"{one['steps']} of {one['planned_steps']}, stopped early"


def _change(one: Training, key: str) -> str:
    """A held-out figure before and after; nothing where nothing was held out."""
    before, after = one["held_out_before"], one["held_out_after"]
    return f"{before[key]:.3f} → {after[key]:.3f}" if before and after else ""


def table(head: Sequence[str], lines: Sequence[Sequence[Any]], texts: int) -> str:
    """An HTML table; the first `texts` columns are words."""
    kinds = [' class="text"' if place < texts else "" for place in range(len(head))]
    heads = "".join(f"<th{kind}>{escape(one)}</th>" for kind, one in zip(kinds, head, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(str(one))}</td>" for kind, one in zip(kinds, row, strict=True)) + "</tr>"
        for row in lines
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
