"""Every plot of an evaluation as a file of its own, for a model card, a slide or an issue: SVG and PNG."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.report.charts.field import Results
from eval.report.contents import charts
from eval.report.drawing.raster import paint
from eval.report.drawing.resolved import resolved, written
from eval.report.heatmap import map_charts
from factory.errors import DataError
from factory.files.atomic import write_atomically


@dataclass(frozen=True)
class Picture:
    """One plot in two files; `words` say what it shows to who cannot see it."""

    name: str
    title: str
    words: str
    svg: Path
    png: Path


def draw_pictures(
    results: Results, folder: Path, artifact: str | None = None, mapped: dict[str, Any] | None = None
) -> list[Picture]:
    """The plots into `folder`, in the report's order, drawn from what results.json or a record of `evals/` holds.

    `artifact` keeps to one drafter of several, with prompt lookup and the target alone beside it; `mapped` adds the
    break-even map. Files are light, need no stylesheet and no font, and are the same for the same results; those that
    an earlier call left there and this one does not draw are removed. Raises DataError for what is not an evaluation,
    and where a file cannot be written.
    """
    try:
        found = charts(results if artifact is None else _only(results, artifact))
        found += map_charts(mapped) if mapped is not None else []
    except (KeyError, TypeError) as error:
        raise DataError(f"not what `factory eval` writes ({error!r}); run it again") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = []
        for chart in (one for one in found if one.card):
            alone = resolved(chart.svg)
            svg, png = folder / f"{chart.name}.svg", folder / f"{chart.name}.png"
            write_atomically(svg, written(alone))
            paint(alone, png)
            pictures.append(Picture(chart.name, chart.title, alone[1].text or "", svg, png))
        _remove_others(folder, {one.name for one in pictures})
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from error
    return pictures


def _remove_others(folder: Path, drawn: set[str]) -> None:
    """Plots of an earlier evaluation that this one has none of; what somebody else put there stays."""
    for svg in folder.glob("*.svg"):
        mine = f'aria-labelledby="plot-{svg.stem}-title"'
        if svg.stem not in drawn and mine in svg.read_text(encoding="utf-8", errors="replace")[:1000]:
            svg.unlink()
            svg.with_suffix(".png").unlink(missing_ok=True)


def _only(results: Results, artifact: str) -> Results:
    """The results without other artifacts. Raises DataError where that one took no part."""
    if not any(row["artifact"] == artifact for row in results["candidates"]):
        raise DataError(f"{artifact} took no part in this evaluation")
    kept: Results = dict(results)
    for key in ("candidates", "rows", "trainings"):
        kept[key] = [row for row in results.get(key) or () if row["artifact"] in (artifact, None)]
    if results.get("roofline"):
        steps = [step for step in results["roofline"]["steps"] if step["artifact"] in (artifact, None)]
        kept["roofline"] = {**results["roofline"], "steps": steps}
    return kept
