"""What stands in a report, in which order: the charts of results, their tables, and the words around them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from eval.report.charts.by_k import k_chart
from eval.report.charts.by_suite import suite_chart
from eval.report.charts.curves import training_charts
from eval.report.charts.field import Results
from eval.report.charts.forecasts import forecast_chart
from eval.report.charts.front import cost_chart, size_chart
from eval.report.charts.lengths import caption_of, lengths_chart, panels
from eval.report.charts.roofline_plot import roofline_chart
from eval.report.charts.spent import spent_charts
from eval.report.drawing.chart import Chart
from eval.report.guide import GUIDE
from eval.report.headline import headline
from eval.report.heatmap import cells_table, map_charts, map_rules
from eval.report.page import Section, page
from eval.report.published import HEADING, published_section
from eval.report.tables import (
    candidates_table,
    parity_table,
    roofline_table,
    rows_table,
    speedup_table,
    suites_table,
    training_table,
)
from factory.card import certified
from factory.wording import hardware_words

Certificate = dict[str, Any]

NO_LENGTHS = "These results hold no accepted lengths: they are of an earlier version."


def charts(results: Results) -> list[Chart]:
    """Every figure of an evaluation, in the page's order."""
    single = (size_chart(results), cost_chart(results), k_chart(results), suite_chart(results))
    found = [*single, lengths_chart(results), *spent_charts(results), forecast_chart(results)]
    found += [roofline_chart(results.get("roofline")), *training_charts(results)]
    return [chart for chart in found if chart is not None]


def report(results: Results, mapped: dict[str, Any] | None, certificates: Sequence[Certificate]) -> str:
    """The page of an evaluation, of the map that lies beside it, if any, and of the drafters' certificates."""
    found = {chart.name: chart for chart in charts(results)}
    sections = [
        Section("front", "Size and speed", "What size and cost buy", _figures(found, "size", "cost")),
        Section("speedups", "Speedup", "How many tokens to propose, and on which text", _speedups(results, found)),
        Section("published", "Published", HEADING, published_section(results)),
        Section("accepted", "Accepted tokens", "How many proposals stand", _accepted(results)),
        Section("time", "Where time goes", "Where the time goes", _spent(found)),
        Section(
            "forecasts", "Forecast", "Forecast against measured, and the hardware's floor", _forecast(results, found)
        ),
        _map_section(mapped),
        Section("lossless", "Losslessness", "Is the output the target's own?", _lossless(results, certificates)),
        Section("training", "Training", "How the drafters were trained", _training(results, found)),
        Section("every", "Every measurement", "Every measurement", rows_table(results)),
        _guide(),
        Section("provenance", "Provenance", "Made with", _provenance(results)),
    ]
    return page(f"Drafters for {results['target']['model']}", headline(results), sections)


def map_report(found: dict[str, Any]) -> str:
    """The page of a folder that holds a map and no evaluation."""
    title = f"Where drafting pays for {found['target']['model']}"
    setting = f"{hardware_words(found['hardware'])} · {found['dtype']} · reader {found['reader']}"
    opening = f"""<section id="verdict" class="verdict map"><p class="eyebrow">Break-even map</p>
<h1>{escape(title)}</h1><p class="hardware">{escape(setting)}</p>
<p class="reason">No evaluation lies beside this map.</p></section>
"""
    facts = {key: found[key] for key in ("target", "artifact", "hardware", "versions", "git", "suites", "plan")}
    return page(title, opening, [_map_section(found), Section("provenance", "Provenance", "Made with", _raw(facts))])


def figure(chart: Chart, kind: str = "") -> str:
    """A chart with its title and caption."""
    named = f' class="{kind}"' if kind else ""
    caption = f"<figcaption>{escape(chart.caption)}</figcaption>" if chart.caption else ""
    return f"<figure{named}><h3>{escape(chart.title)}</h3>{chart.svg}{caption}</figure>"


def _figures(found: dict[str, Chart], *names: str) -> str:
    drawn = "".join(figure(found[name]) for name in names if name in found)
    return f'<div class="plots">{drawn}</div>' if drawn else ""


def _folded(summary: str, html: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{html}</details>" if html else ""


def _speedups(results: Results, found: dict[str, Chart]) -> str:
    if not results["candidates"]:
        return ""
    table = _folded("Every drafter and k, suites pooled, and measured again", candidates_table(results))
    return _figures(found, "by-k", "by-suite") + suites_table(results) + table


def _accepted(results: Results) -> str:
    if not results["candidates"]:
        return ""
    best, rest = panels(results)
    if not best:
        return f'<p class="soft">{escape(NO_LENGTHS)}</p>'
    said = f'<p class="soft">{escape(caption_of(results))}</p>'
    return f"{_panels(best)}{said}{_folded('Every other k', _panels(rest)) if rest else ''}"


def _panels(drawn: Sequence[str]) -> str:
    return f'<div class="panels">{"".join(f"<div>{one}</div>" for one in drawn)}</div>'


def _spent(found: dict[str, Chart]) -> str:
    names = [name for name in found if name.startswith(("token-time", "round-time"))]
    first, rest = ([n for n in names if n.endswith("-rest") == folded] for folded in (False, True))
    return _figures(found, *first) + _folded("Every other k", _figures(found, *rest))


def _forecast(results: Results, found: dict[str, Chart]) -> str:
    if not results.get("profile"):
        return ""
    words = f"Forecasts, and the roofs, are for {results['profile']['words']}."
    drawn = _figures(found, "forecast") + (figure(found["roofline"], "broad") if "roofline" in found else "")
    table = _folded("Forecasts row by row, with what the measured parts make", speedup_table(results))
    if "roofline" in found:
        table += _folded("Every step beside its floor", roofline_table(results["roofline"]))
    return f'<p class="soft">{escape(words)}</p>{drawn}{table}' if drawn or table else ""


def _map_section(mapped: dict[str, Any] | None) -> Section:
    if mapped is None:
        return Section("map", "", "", "")
    drawn = "".join(figure(chart) for chart in map_charts(mapped))
    words = f'<p class="soft">{escape(mapped["words"])}</p>'
    html = f'{map_rules(mapped)}<div class="plots">{drawn}</div>{words}{_folded("Every cell", cells_table(mapped))}'
    return Section("map", "Where it pays", "Where drafting pays", html)


def _lossless(results: Results, certificates: Sequence[Certificate]) -> str:
    said = "".join(
        f"<h3>Certificate of {escape(one['artifact'])}</h3><p>{escape(_certificate(one))}</p>" for one in certificates
    )
    none = (
        ""
        if said
        else '<p class="soft">No certificate lies here; <code>factory eval DRAFTER --certify</code> makes one.</p>'
    )
    return f"""<p>Before anything was timed, every drafter at every k had to write the target's own greedy text, token
by token. A drafter that did not is left out of the verdict, however fast it was.</p>
{parity_table(results)}{said or none}"""


def _certificate(one: Certificate) -> str:
    if not one["current"]:
        return "It is of an older build, and says nothing about this one."
    return " ".join(certified(one))


def _training(results: Results, found: dict[str, Chart]) -> str:
    trained = results.get("trainings") or []
    return _figures(found, "overlap", "worth", "loss") + training_table(trained) if trained else ""


def _guide() -> Section:
    terms = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in GUIDE.items())
    return Section("guide", "How to read it", "How to read it", f'<dl class="guide">{terms}</dl>')


def _provenance(results: Results) -> str:
    target, versions = results["target"], results["versions"]
    facts = {
        "target": " · ".join(str(target[key]) for key in ("model", "revision") if target.get(key)),
        "target's identity": f"sha256 {target['identity']}" if target.get("identity") else "",
        "served as": f"{target['dtype']}, reader {target['reader']}",
        "hardware": ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in results["hardware"].items()),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "code": f"git {results['git']}" if results["git"] else "",
        **{
            f"prompts: {suite['name']}": f"version {suite['version'] or 'none'}, {suite['prompts']} to choose by, "
            f"{suite['confirm_prompts']} fresh, sha256 {suite['sha256']}"
            for suite in results["suites"]
        },
        "prompts skipped": str(results["skipped_prompts"]) if results["skipped_prompts"] else "",
    }
    shown = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items() if value)
    keys = ("target", "hardware", "profile", "placement", "versions", "git", "suites", "plan", "parity")
    return f'<dl class="facts">{shown}</dl>{_raw({key: results[key] for key in keys if key in results})}'


def _raw(facts: dict[str, Any]) -> str:
    written = escape(json.dumps(facts, indent=1))
    return f'<details class="raw"><summary>Plan and facts, as they were written</summary><pre>{written}</pre></details>'
