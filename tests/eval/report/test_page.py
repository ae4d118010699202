"""The page as HTML: whole, well-formed, closed to the network, legible; and what it says first."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from eval.report.charts.by_k import k_chart
from eval.report.charts.front import Point, front
from eval.report.contents import map_report, report
from eval.report.drawing.palette import COLOURS, DARK, LIGHT, MARKS, Palette

BENCHMARKS = Path(__file__).resolve().parents[3] / "docs/benchmarks"
VOID = {"meta", "br", "input", "rect", "circle", "line", "polyline", "polygon"}
FILES = ("half-hour-cpu.json", "demo-cpu.json", "demo-cpu-eager.json", "stories260k-layers-cpu.json")


def read(name: str) -> dict[str, Any]:
    found = json.loads((BENCHMARKS / name).read_text())
    return dict(found)


class Outline(HTMLParser):
    """Tags and attributes; raises AssertionError for a tag that is not closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def all(self, key: str) -> list[str]:
        return [given[key] for _, given in self.tags if key in given]


@pytest.fixture(scope="module", params=[*FILES, "map-cpu.json"])
def page(request: pytest.FixtureRequest) -> str:
    found = read(request.param)
    return map_report(found) if request.param == "map-cpu.json" else report(found, read("map-cpu.json"), [])


def test_it_is_well_formed_and_every_reference_leads_somewhere(page: str) -> None:
    outline = Outline(page)
    ids = outline.all("id")
    assert len(ids) == len(set(ids)) and len(ids) > 10
    for key in ("aria-labelledby", "aria-describedby", "for"):
        assert {one for value in outline.all(key) for one in value.split()} <= set(ids)
    links = outline.all("href")
    assert len(links) > 2 and {link.removeprefix("#") for link in links} <= set(ids)
    assert outline.tags[0][1]["lang"] == "en" and sum(tag == "h1" for tag, _ in outline.tags) == 1
    headings = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert all(below <= above + 1 for above, below in pairwise(headings))
    for tag, given in outline.tags:
        assert tag != "svg" or given["role"] in ("img", "group")
        assert "spot" not in given.get("class", "").split() or (given["tabindex"], given["role"]) == ("0", "img")
        assert "spot" not in given.get("class", "").split() or given["aria-label"]


def test_nothing_is_fetched_and_the_policy_forbids_it(page: str) -> None:
    outline = Outline(page)
    assert "://" not in page and "url(" not in page and "@import" not in page
    assert not {"link", "img", "iframe", "object", "base"} & {tag for tag, _ in outline.tags}
    assert outline.all("src") == [] and outline.all("style") == []  # the policy knows no style of an element's own
    assert not [key for _, given in outline.tags for key in given if key.startswith("on")]
    (policy,) = (given["content"] for _, given in outline.tags if given.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    assert len(page.encode()) < 1_500_000


def test_the_verdict_comes_first_in_one_sentence_with_figure_interval_and_k() -> None:
    html = report(read("half-hour-cpu.json"), None, [])
    heading = re.sub("<[^>]*>", "", html.split("<h1>")[1].split("</h1>")[0])
    assert heading == "half-hour at k = 3 is 1.30 times as fast as the target alone (95 % interval 1.18 to 1.44)"
    after = html.split("</h1>")[1]
    assert after.index("Intel(R) Xeon(R) Processor, 2 threads") < after.index("<svg") < after.index("<h2")
    html = report(read("demo-cpu.json"), None, [])
    heading = re.sub("<[^>]*>", "", html.split("<h1>")[1].split("</h1>")[0])
    assert heading == (
        "No drafter is shown to be faster: the best, prompt lookup at k = 4, runs at 1.10 times the target's speed "
        "(95 % interval 0.99 to 1.28)"
    )


def test_where_no_output_was_the_targets_own_no_figure_is_shown() -> None:
    results = read("demo-cpu.json")
    for row in results["candidates"]:
        row["matches_target"] = False
    results["verdict"]["reason"] = "None is faster than the target, because no drafter's output was the target's own."
    html = report(results, None, [])
    assert "No drafter keeps the output of target" in html and "plot-interval" not in html
    assert "its output was not the target&#x27;s own" in html  # and the front says so too


def point(name: str, x: float, y: float, **changes: Any) -> Point:
    given = {"low": y - 0.1, "high": y + 0.1, "best": True, "sound": True, "words": name} | changes
    return Point(name, 2, x, y, **given)


def test_on_the_front_is_what_nothing_smaller_reaches() -> None:
    field = [point("small", 1.0, 1.2), point("large", 3.0, 1.5), point("between", 2.0, 1.1), point("slow", 0.5, 0.9)]
    assert [one.name for one in front(field)] == ["small", "large"]
    # Prompt lookup takes nothing; what is not lossless has no part; of equal size the faster one counts.
    field += [point("lookup", 0.0, 1.3), point("wrong", 1.0, 9.0, sound=False), point("larger", 3.0, 1.4)]
    assert [one.name for one in front(field)] == ["lookup", "large"]
    assert front([point("slow", 1.0, 0.99)]) == []


def test_of_many_drafters_every_mark_is_nearest_to_its_own_k() -> None:
    results = read("half-hour-cpu.json")
    mine = [row for row in results["candidates"] if row["artifact"]]
    results["candidates"] += [{**row, "artifact": f"grid--{place}"} for place in range(29) for row in mine]
    chart = k_chart(results)
    assert chart is not None
    figures = {one[1]: float(one[0]) for one in re.findall(r'<text x="([\d.]+)"[^>]*>(\d)</text>', chart.svg)}
    marks = re.findall(r'aria-label="\S+, k = (\d)[:,].*?(?:<line [^>]*x1|<circle [^>]*cx)="([\d.]+)"', chart.svg)
    assert {k for k, _ in marks} == set(figures) and len(marks) > 90
    for k, x in marks:
        assert min(figures, key=lambda one: abs(figures[one] - float(x))) == k
    names = [float(y) for y in re.findall(r'<text class="own"[^>]* y="([\d.]+)"', chart.svg)]
    assert len(names) > 8 and all(b - a > 13 for a, b in pairwise(sorted(names)))


def luminance(colour: str) -> float:
    """Relative, as WCAG 2.2 defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_text_is_legible_and_marks_are_seen(palette: Palette) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    texts = ("ink", "soft", "good", "bad", *(colour for colour in COLOURS.values() if not colour.startswith("part")))
    for name in texts:
        for ground in ("page", "panel", "raised"):
            assert contrast(palette[name], palette[ground]) >= 4.5, (name, ground)
    for name in ("focus", *(colour for colour in COLOURS.values() if colour.startswith("part"))):
        assert contrast(palette[name], palette["page"]) >= 3.0, name
    for part in ("draft", "verify", "accept"):  # which carry figures, in the colour of the page
        assert contrast(palette[f"part-{part}"], palette["page"]) >= 4.5, part


def test_both_palettes_have_every_colour_that_is_painted_with() -> None:
    assert LIGHT.keys() == DARK.keys() >= set(COLOURS.values())
    painted = {given[key] for given in MARKS.values() for key in ("fill", "stroke") if key in given}
    assert painted - {"mark", "none"} <= LIGHT.keys()
