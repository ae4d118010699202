"""How many proposed tokens a round had accepted: one panel for each drafter and k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.measurement import AUTO, CHOOSE
from eval.report.charts.field import Results, bests, chosen_from, decisive_batch, looks, names_of
from eval.report.drawing.chart import Chart
from eval.report.drawing.looks import Look
from eval.report.drawing.plane import WIDTH
from eval.report.drawing.svg import box, drawing, fitted, line, spot, text
from eval.verdict.rows import Row, drafter_name, mode

COLUMNS, GAP, PANEL, TALL = 2, 16.0, 142.0, 66.0
FIGURE = 17.0  # what a figure of two digits needs
SHADES = (1.0, 0.5, 0.28)  # of the temperatures, in their order


@dataclass(frozen=True)
class Lengths:
    """One (drafter, k): by temperature, how many rounds had 0, 1, 2 ... tokens accepted."""

    name: str
    k: int | str
    counts: dict[float, list[int]]

    @property
    def most(self) -> int:
        """The longest that was possible."""
        return max(len(one) for one in self.counts.values()) - 1


def lengths_of(rows: Sequence[Row], batch: int) -> list[Lengths]:
    """Of the prompts to choose by, all suites together, in the order of the rows; of rows without counts nothing.

    `batch`: of outputs that were written in such batches.
    """
    found: dict[tuple[str, int | str], dict[float, list[int]]] = {}
    for row in rows:
        counts = row.get("accepted_lengths")
        if counts is None or row["prompt_set"] != CHOOSE or row.get("batch", 1) != batch:
            continue
        mine = found.setdefault((drafter_name(row), row["k"]), {}).setdefault(row["temperature"], [])
        mine += [0] * (len(counts) - len(mine))
        for length, count in enumerate(counts):
            mine[length] += count
    return [Lengths(name, k, dict(sorted(counts.items()))) for (name, k), counts in found.items()]


def lengths_chart(results: Results) -> Chart | None:
    """Of every drafter at its best k, in one drawing; None where the rows have no counts."""
    found = _sorted(results)[0]
    if not found:
        return None
    styles, title = looks(results), "Accepted tokens a round"
    wide = (WIDTH - GAP * (COLUMNS - 1)) / COLUMNS
    parts = [
        part
        for place, one in enumerate(found)
        for part in _panel(one, styles[one.name], place % COLUMNS * (wide + GAP), place // COLUMNS * PANEL, wide)
    ]
    size, words = (WIDTH, PANEL * -(-len(found) // COLUMNS)), f"{title}: {'; '.join(map(_words, found))}"
    return Chart("lengths", title, drawing("lengths", title, words, size, parts), caption_of(results))


def caption_of(results: Results) -> str:
    """What a panel shows."""
    modes = sorted({row["temperature"] for row in results["rows"]})
    shades = ", ".join(f"{mode(t)} {word}" for t, word in zip(modes, ("dark", "light", "lightest"), strict=False))
    return f"""Per cent of rounds by how many of the proposed tokens were accepted, on the prompts to choose by, first
repeat{f": {shades}" if len(modes) > 1 else ""}. Near an output's end fewer are proposed."""


def panels(results: Results) -> tuple[list[str], list[str]]:
    """A drawing for each (drafter, k): those of the best k, and all others."""
    styles, wide = looks(results), 210.0
    both = []
    for kind, found in zip(("best", "rest"), _sorted(results), strict=True):
        drawn = []
        for place, one in enumerate(found):
            parts = _panel(one, styles[one.name], 0.0, 0.0, wide)
            title = f"Accepted tokens a round: {one.name}, k = {one.k}"
            drawn.append(drawing(f"lengths-{kind}-{place}", title, _words(one), (wide, PANEL - 8), parts))
        both.append(drawn)
    return both[0], both[1]


def _sorted(results: Results) -> tuple[list[Lengths], list[Lengths]]:
    """Every drafter at its best k, and all others by drafter and k."""
    found, order = lengths_of(results["rows"], decisive_batch(results)), names_of(results)
    found.sort(key=lambda one: (order.index(one.name), _order(one.k)))
    best = {name: row["k"] for name, row in bests(chosen_from(results)).items()}
    first = [one for one in found if best.get(one.name) == one.k]
    return first, [one for one in found if one not in first]


def _order(k: int | str) -> float:
    """By k, `auto` behind the numbers."""
    return float("inf") if k == AUTO else float(k)


def _words(one: Lengths) -> str:
    means = (f"{_mean(counts):.2f} {mode(t)}" for t, counts in one.counts.items())
    return f"{one.name}, k = {one.k}: mean {', '.join(means)}"


def _mean(counts: Sequence[int]) -> float:
    return sum(length * count for length, count in enumerate(counts)) / (sum(counts) or 1)


def _panel(one: Lengths, look: Look, left: float, top: float, wide: float) -> list[str]:
    """Bars from the base up, temperatures beside each other, the mean under the title."""
    base = top + 40 + TALL + 10
    slot = (wide - 8) / (one.most + 1)
    slim = min(26.0, (slot - min(4.0, slot / 4)) / len(one.counts))
    means = " / ".join(f"{_mean(counts):.2f}" for counts in one.counts.values())
    parts = [
        text(left + 4, top + 14, fitted(f"{one.name}, k = {one.k}", 28), kind="heading"),
        text(left + 4, top + 29, f"mean {means}", kind="faint"),
        line("axis", left + 4, base, left + wide - 4, base),
    ]
    every = next(step for step in (1, 2, 5, 10, 20, 50, one.most + 1) if step * slot >= FIGURE or step > one.most)
    for length in range(0, one.most + 1, every):
        middle = left + 4 + (length + 0.5) * slot
        parts.append(text(middle, base + 14, str(length), anchor="middle", kind="faint"))
    for place, (temperature, counts) in enumerate(one.counts.items()):
        total, shade = sum(counts) or 1, SHADES[min(place, len(SHADES) - 1)]
        for length, count in enumerate(counts):
            share = count / total
            x = left + 4 + (length + 0.5) * slot + slim * (place - len(one.counts) / 2)
            words = f"{one.name}, k = {one.k}, {mode(temperature)}: {length} accepted in {count} rounds, {share:.0%}"
            opaque = f' fill-opacity="{shade:g}"' if shade < 1 else ""
            bar = box("bar", x, base - share * TALL, max(slim - 1, 0.8 * slim), share * TALL, opaque)
            figure = text(x + slim / 2, base - share * TALL - 3, f"{100 * share:.0f}", anchor="middle", kind="faint")
            parts.append(spot(look.colour, words, bar + (figure if slim >= 15 else "")))
    return parts
