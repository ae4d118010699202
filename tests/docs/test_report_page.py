"""docs/report.md speaks of every part of a report, and shows pictures that are there."""

import json
import re
from pathlib import Path

from eval.report.contents import charts, report
from eval.report.heatmap import map_charts

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "report.md").read_text(encoding="utf-8")


def read(name: str) -> dict[str, object]:
    return dict(json.loads((DOCS / "benchmarks" / name).read_text()))


def test_every_part_of_a_report_has_its_heading() -> None:
    html = report(read("half-hour-cpu.json"), read("map-cpu.json"), [])
    headings = set(re.findall(r"<h2 [^>]*>([^<]*)</h2>", html)) - {"How to read it", "Made with", "Every measurement"}
    ours = " ".join(re.findall(r"^## (.*)$", PAGE, re.MULTILINE))
    assert len(headings) > 7
    for heading in headings:
        first = heading.replace("&#x27;", "'").split(",")[0]
        assert first in ours or first == "How the drafters were trained"


def test_every_picture_lies_there_and_is_short() -> None:
    shown = re.findall(r"!\[[^\]]+\]\((pictures/[^)]+)\)", PAGE)
    assert len(shown) > 8
    for name in shown:
        assert (DOCS / name).stat().st_size < 200_000
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.glob("pictures/**/*.png")} <= {
        *shown,
    }


def test_the_plots_that_are_named_are_those_that_are_drawn() -> None:
    drawn = [*charts(read("half-hour-cpu.json")), *map_charts(read("map-cpu.json"))]
    for chart in drawn:
        assert not chart.card or f"`{chart.name}`" in PAGE or chart.name == "map-1"
