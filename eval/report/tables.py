"""The report's tables, as HTML. All text is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from eval.measurement import CONFIRM
from eval.report.charts.by_suite import by_suite
from eval.report.charts.field import Results
from eval.report.charts.roofline_plot import name_of
from eval.report.drawing.svg import si
from eval.verdict.rows import Row, drafter_name, interval, k_words, same_output
from eval.verdict.trainings import Training


def table(caption: str, head: Sequence[str], lines: Sequence[Sequence[Any]], texts: int) -> str:
    """A table by its caption; the first `texts` columns are words, and the first cell of a line is its heading."""
    heads = "".join(f'<th scope="col"{_kind(place, texts)}>{escape(one)}</th>' for place, one in enumerate(head))
    body = "".join(f"<tr>{''.join(_cell(place, one, texts) for place, one in enumerate(row))}</tr>" for row in lines)
    return framed(caption, f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody>")


def framed(caption: str, inside: str) -> str:
    """A table that scrolls by itself where the page is too narrow for it, by keyboard too."""
    said = escape(caption)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{said}">'
        f'<table><caption class="unseen">{said}</caption>{inside}</table></div>'
    )


def _kind(place: int, texts: int) -> str:
    return ' class="text"' if place < texts else ""


def _cell(place: int, one: Any, texts: int) -> str:
    if place == 0:
        return f'<th scope="row"{_kind(place, texts)}>{escape(str(one))}</th>'
    return f"<td{_kind(place, texts)}>{escape(str(one))}</td>"


def where(row: Row) -> str:
    """The prompts that a row was measured on."""
    return "fresh" if row["prompt_set"] == CONFIRM else "to choose by"


def candidates_table(results: Results) -> str:
    """Every (drafter, k), suites and temperatures pooled, as the choice saw them and as they were measured again."""
    head = [
        "drafter",
        "k",
        "prompts",
        "speedup, 95 % interval",
        "forecast",
        "alpha",
        "tokens a round",
        "a round, in steps",
    ]
    lines = []
    for row in results["candidates"]:
        figures = [row.get(key) for key in ("forecast_speedup", "alpha", "round_tokens", "round_cost")]
        said = [drafter_name(row), k_words(row), f"{row['prompts']} {where(row)}", interval(row)]
        lines.append([*said, *map(_number, figures)])
    return table("Every drafter and k, pooled", head, lines, texts=1)


def suites_table(results: Results) -> str:
    """A line for each drafter at its best k, a column for each suite and temperature."""
    groups = by_suite(results)
    lines: dict[str, list[str]] = {}
    for column, (_, rows) in enumerate(groups):
        for row in rows:
            said = lines.setdefault(f"{drafter_name(row)}, k = {row['k']}", [""] * len(groups))
            said[column] = interval(row)
    head = ["drafter at its best k", *(place for place, _ in groups)]
    return table("Speedup by suite and temperature", head, [[name, *said] for name, said in lines.items()], texts=1)


def speedup_table(results: Results) -> str:
    """Forecast, modelled and measured speedup of every row that has a model of either kind; nothing without any."""
    rows = [row for row in results["rows"] if row["drafter"] is not None and _models(row)]
    if not rows:
        return ""
    head = ["drafter", "k", "suite", "T", "batch", "prompts", "forecast", "modelled", "measured", "measured / forecast"]
    lines = []
    for row in rows:
        forecast, modelled = row.get("forecast_speedup"), row.get("modelled_speedup")
        said = [drafter_name(row), row["k"], row["suite"], f"{row['temperature']:g}", row["batch"], where(row)]
        said += [_number(forecast), _number(modelled), interval(row)]
        said += [f"{row['speedup'] / forecast - 1:+.0%}" if forecast else ""]
        lines.append(said)
    return table("Forecast, modelled, measured", head, lines, texts=6)


def _models(row: Row) -> bool:
    return row.get("forecast_speedup") is not None or row.get("modelled_speedup") is not None


def roofline_table(found: dict[str, Any]) -> str:
    """Every step beside its floor."""
    head = ["step", "tokens read", "streamed", "at", "operations", "operations / byte", "floor ms", "measured ms"]
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
    return table("Steps and their floors", [*head, "floor reached", "bound by"], lines, texts=1)


def training_table(found: Sequence[Training]) -> str:
    """What each distillation took and brought."""
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
    return table("Trainings", head, lines, texts=3)


def _steps(one: Training) -> str:
    """How many; where fewer than planned, of how many."""
    if one["planned_steps"] is None or one["steps"] == one["planned_steps"]:
        return f"{one['steps']}"
    return f"{one['steps']} of {one['planned_steps']}, stopped early"


def _change(one: Training, key: str) -> str:
    """A held-out figure before and after; nothing where nothing was held out."""
    before, after = one["held_out_before"], one["held_out_after"]
    return f"{before[key]:.3f} → {after[key]:.3f}" if before and after else ""


def parity_table(results: Results) -> str:
    """Greedy outputs of every (drafter, k), compared token by token before anything was timed."""
    head = ["drafter", "k", "compared in", "outputs", "that differ", "near-ties", "the target's own"]
    lines = [
        [
            drafter_name(found),
            "" if found["k"] is None else found["k"],
            found["dtype"],
            found["outputs"],
            found["divergences"],
            found["near_ties"],
            "yes" if found["passed"] else "NO",
        ]
        for found in results["parity"]
    ]
    return table("Parity with the target", head, lines, texts=3)


def rows_table(results: Results) -> str:
    """Every measurement, the columns in groups."""
    verdict = results["verdict"]
    groups = '<td colspan="7"></td>' + "".join(
        f'<th scope="colgroup" colspan="{len(columns)}">{escape(name)}</th>' for name, columns in COLUMNS.items()
    )
    columns = [column for some in COLUMNS.values() for column in some]
    texts = ("drafter", "k", "suite", "T", "batch", "prompts", "same output")
    heads = "".join(f'<th scope="col" class="text">{one}</th>' for one in texts)
    heads += "".join(f'<th scope="col">{escape(heading)}</th>' for _, heading, _ in columns)
    lines = []
    for row in results["rows"]:
        chosen = row["drafter"] is not None and all(row[key] == verdict[key] for key in ("artifact", "drafter", "k"))
        name = drafter_name(row) + (f" ({row['warning']})" if row["warning"] else "")
        first = [k_words(row), row["suite"], f"{row['temperature']:g}", row["batch"], where(row), same_output(row)]
        cells = "".join(f'<td class="text">{escape(str(value))}</td>' for value in first)
        cells += "".join(
            f"<td>{'' if row.get(key) is None else escape(form.format(row[key]))}</td>" for key, _, form in columns
        )
        kind = ' class="chosen"' if chosen else ""
        lines.append(f'<tr{kind}><th scope="row" class="text">{escape(name)}</th>{cells}</tr>')
    inside = f'<thead><tr class="groups">{groups}</tr><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody>'
    return framed("Every measurement", inside)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


# results.json's name, heading, format; a forecast stands behind the measured figure that it is of.
COLUMNS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "speedup": (
        ("speedup", "speedup", "{:.2f}"),
        ("speedup_low", "low", "{:.2f}"),
        ("speedup_high", "high", "{:.2f}"),
        ("modelled_speedup", "modelled", "{:.2f}"),
        ("forecast_speedup", "forecast", "{:.2f}"),
        ("ceiling_speedup", "ceiling", "{:.2f}"),
        ("speedup_decode", "without prefill", "{:.2f}"),
    ),
    "acceptance": (
        ("alpha", "alpha", "{:.3f}"),
        ("overlap", "overlap", "{:.3f}"),
        ("tau", "tau", "{:.2f}"),
        ("mean_k", "mean k", "{:.2f}"),
        ("accepted_per_proposed", "accepted / proposed", "{:.2f}"),
    ),
    "rate": (
        ("tokens_per_s", "tok/s", "{:.1f}"),
        ("baseline_tokens_per_s", "target alone tok/s", "{:.1f}"),
        ("latency_s_per_token", "latency s / token", "{:.5f}"),
        ("time_to_first_token_s", "first token s", "{:.4f}"),
    ),
    "seconds of a round": (
        ("t_draft_s", "draft s", "{:.5f}"),
        ("forecast_t_draft_s", "forecast", "{:.5f}"),
        ("t_verify_s", "verify s", "{:.5f}"),
        ("forecast_t_verify_s", "forecast", "{:.5f}"),
        ("t_accept_s", "accept s", "{:.5f}"),
        ("t_host_s", "host s", "{:.5f}"),
        ("t_overhead_s", "both s", "{:.5f}"),
    ),
    "output": (
        ("divergences", "divergences", "{}"),
        ("near_ties", "near-ties", "{}"),
        ("near_tie_bound", "near-tie bound", "{:.2g}"),
        ("repetition", "repetition", "{:.1%}"),
        ("new_tokens", "new tokens", "{}"),
        ("target_passes", "target passes", "{}"),
        ("prompts", "prompts", "{}"),
        ("repeats", "repeats", "{}"),
    ),
    "size": (
        ("parameters", "parameters", "{:,}"),
        ("bytes_on_disk", "bytes", "{:,}"),
        ("c", "c", "{:.3f}"),
        ("forecast_c", "forecast", "{:.3f}"),
        ("cost_ratio", "c (bytes)", "{:.3f}"),
        ("peak_memory_bytes", "peak bytes", "{:,}"),
    ),
}
