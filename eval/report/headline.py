"""The verdict as the report opens with it: one sentence, its interval drawn, its figures, the hardware."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from eval.measurement import CHOOSE, CONFIRM
from eval.report.charts.field import Results, chosen_from, confirmed, high, lossless, low, rank
from eval.report.drawing.plane import Plane, speedup_ticks
from eval.report.drawing.svg import box, drawing, group, line, si, symbol, text
from eval.verdict.rows import Row, drafter_name, same_output
from factory.wording import hardware_words

WIDTH, HEIGHT = 330.0, 96.0


def headline(results: Results) -> str:
    """The section that comes first."""
    verdict, best = results["verdict"], decisive(results)
    won = verdict["speedup"] is not None
    sentence = _sentence(best, won, results["target"]["model"])
    drawn = f'{_tiles(results, best)}<div class="interval-plot">{_interval(best, won)}</div>' if best else ""
    return f"""<section id="verdict" class="verdict {"won" if won else "none"}">
<p class="eyebrow">Verdict</p>
<h1>{sentence}</h1>
<p class="hardware"><b>{escape(hardware_words(results["hardware"]))}</b><br>{escape(setting(results))}</p>
{drawn}
<p class="reason">{escape(verdict["reason"])}</p>
{_listed("warnings", verdict.get("warnings"))}{_listed("notes", results.get("notes"))}
</section>
"""


def _listed(kind: str, said: Sequence[str] | None) -> str:
    """A list in small print; nothing where nothing is to be said."""
    return f'<ul class="{kind}">{"".join(f"<li>{escape(one)}</li>" for one in said)}</ul>' if said else ""


def decisive(results: Results) -> Row | None:
    """The row that the verdict is made of; where nothing won, the one that came nearest. None where nothing stood."""
    verdict, again = results["verdict"], confirmed(results)
    if verdict["speedup"] is not None:
        keys = ("artifact", "drafter", "k")
        return next((row for row in again if all(row[key] == verdict[key] for key in keys)), None)
    standing = [row for row in again if lossless(row)] or [row for row in chosen_from(results) if lossless(row)]
    return max(standing, key=rank, default=None)


def _sentence(best: Row | None, won: bool, target: str) -> str:
    """One sentence with figure, interval and k."""
    if best is None:
        return f"No drafter keeps the output of {escape(target)}"
    times = f"<strong>{best['speedup']:.2f} times</strong>"
    span = (
        f" <span>(95 % interval {low(best):.2f} to {high(best):.2f})</span>" if best["speedup_low"] is not None else ""
    )
    who = f"<em>{escape(drafter_name(best))}</em> at k = {escape(str(best['k']))}"
    if won:
        return f"{who} is {times} as fast as the target alone{span}"
    shown = "is shown to be faster" if best["speedup"] > 1 else "is faster"
    return f"No drafter {shown}: the best, {who}, runs at {times} the target's speed{span}"


def setting(results: Results) -> str:
    """On what it was measured."""
    target = results["target"]
    batches = dict.fromkeys(str(row.get("batch", 1)) for row in results["rows"])
    model = f"{target['model']}, {target['parameters']:,} parameters, {target['dtype']}"
    return f"{model} · reader {target['reader']} · batch {' and '.join(batches)}"


def _interval(best: Row, won: bool) -> str:
    """The interval on a scale that has the target alone on it."""
    least, most = min(0.9, low(best)), max(1.1, high(best))
    margin = 0.12 * (most - least)
    plane = Plane(least - margin, most + margin, 0.0, 1.0, 8.0, 26.0, WIDTH - 8, HEIGHT - 22)
    colour, middle = "good" if won else "bad", (plane.top + plane.bottom) / 2
    parts = []
    for value in speedup_ticks(plane.x_high, plane.x_low):
        parts.append(line("grid", plane.x(value), plane.top, plane.x(value), plane.bottom))
        parts.append(text(plane.x(value), plane.bottom + 16, f"{value:g}x", anchor="middle"))
    parts.append(group("alone", line("even", plane.x(1.0), plane.top - 6, plane.x(1.0), plane.bottom)))
    parts.append(text(plane.x(1.0), plane.top - 11, "target alone", anchor="middle", kind="faint"))
    left, right = plane.x(low(best)), plane.x(high(best))
    bar = box("band", left, middle - 9, max(right - left, 2), 18)
    ends = "".join(line("interval", at, middle - 9, at, middle + 9) for at in (left, right))
    parts.append(group(colour, bar, ends, symbol("circle", plane.x(best["speedup"]), middle, 7)))
    words = f"{drafter_name(best)} at k = {best['k']}: {best['speedup']:.2f}x, 95 % interval {low(best):.2f} to "
    words += f"{high(best):.2f}; the target alone is at 1x"
    return drawing("interval", "The verdict's interval", words, (WIDTH, HEIGHT), parts)


def _tiles(results: Results, best: Row) -> str:
    """Its figures, each with what it is beside."""
    stage = CONFIRM if best in confirmed(results) else CHOOSE
    rows = [row for row in results["rows"] if row["prompt_set"] == stage and _same(row, best)]
    target = results["target"]
    tiles = [
        (
            "speedup",
            f"{best['speedup']:.2f}×",
            f"{_counted(best['prompts'], 'prompt')}, {_counted(best['repeats'], 'repeat')}",
        )
    ]
    if rows:
        alone = f"target alone {pooled(rows, 'baseline_tokens_per_s'):.0f}"
        tiles.append(("tokens a second", f"{pooled(rows, 'tokens_per_s'):.0f}", alone))
    if best["alpha"] is not None:
        tokens = best.get("round_tokens")
        tiles.append(("acceptance, alpha", f"{best['alpha']:.2f}", f"{tokens:.2f} tokens a round" if tokens else ""))
    if best.get("bytes_on_disk"):
        share = (
            f"{best['bytes_on_disk'] / target['bytes_on_disk']:.0%} of the target" if target["bytes_on_disk"] else ""
        )
        tiles.append(("on disk", si(best["bytes_on_disk"], "B"), share))
    else:
        tiles.append(("on disk", "nothing", "no weights, no training"))
    said = {same_output(row) for row in rows}
    same = "unchanged" if lossless(best) else "CHANGED"
    tiles.append(
        ("output", same, "with near-ties" if any("near" in one for one in said) else "token by token, or in law")
    )
    inside = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(figure)}</dd><dd>{escape(beside)}</dd></div>"
        for name, figure, beside in tiles
    )
    return f'<dl class="tiles">{inside}</dl>'


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _same(row: Row, other: Row) -> bool:
    return all(row[key] == other[key] for key in ("artifact", "drafter", "k"))


def pooled(rows: Sequence[Row], rate: str) -> float:
    """A rate over several rows: all tokens / all seconds."""
    tokens = sum(row["new_tokens"] for row in rows)
    return float(tokens / sum(row["new_tokens"] / row[rate] for row in rows))
