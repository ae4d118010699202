"""Parts of the report, as HTML: where the time goes, forecasts beside measurements, the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from eval.account import PARTS, Account, accounts
from eval.bars import Bar, css, stacked
from eval.roofline_plot import name_of, roofline_plot
from eval.rows import Row, drafter_name, interval
from eval.svg import si

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
