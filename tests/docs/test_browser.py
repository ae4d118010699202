"""The report in a real Chromium: nothing fetched, nothing complained of, every key leads on, nothing sticks out.

Where there is none on the path, these are skipped; `apt-get install chromium` brings one.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.report.writing import draw

DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.insert(0, str(DOCS))
from browser import Browser, Page, find_chromium  # noqa: E402

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: none of its names is on the path")
TAB, ENTER, RIGHT, HOME = ("Tab", 9), ("Enter", 13), ("ArrowRight", 39), ("Home", 36)
HERE = "document.activeElement"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn of shipped results, with the accepted lengths that these are too old to have, and of a shipped map."""
    out = tmp_path_factory.mktemp("report")
    results: dict[str, Any] = json.loads((DOCS / "benchmarks/stories260k-layers-cpu.json").read_text())
    for row in results["rows"]:
        row["accepted_lengths"] = [9, 5, *range(row["k"] - 1)] if row["drafter"] else None
    (out / "map.json").write_text((DOCS / "benchmarks/map-cpu.json").read_text())
    return draw(results, out / "none", out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    with Browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as started:
        yield started


def opened(browser: Browser, report: Path, **changes: Any) -> Page:
    return browser.open(report.as_uri(), **{"width": 1280, "height": 900, **changes})


def test_nothing_is_fetched_and_nothing_is_complained_of(browser: Browser, report: Path) -> None:
    page = opened(browser, report)
    asked = [event["request"]["url"] for event in page.events("Network.requestWillBeSent")]
    assert asked == [report.as_uri()]
    for kind in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
        assert page.events(kind) == []
    # And what a page would fetch is refused by its own policy.
    answer = "fetch('https://example.org').then(() => 'fetched', () => 'refused')"
    assert page.value(answer) == "refused"
    assert any("Content Security Policy" in entry["entry"]["text"] for entry in page.events("Log.entryAdded"))


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_sticks_out_of_the_page(browser: Browser, report: Path, width: int) -> None:
    page = opened(browser, report, width=width)
    page.value("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.value("document.documentElement.scrollWidth") == width
    # What is wider than its column scrolls by itself.
    wide = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
    outside = f"{wide} && !e.closest('.wide, .broad, pre, .unseen')).map(e => e.outerHTML.slice(0, 80))"
    assert page.value(outside) == []


def test_keys_lead_from_the_top_into_every_plot_and_along_its_marks(browser: Browser, report: Path) -> None:
    page = opened(browser, report)
    page.press(*TAB)
    assert page.value(f"{HERE}.textContent") == "Skip to the verdict"
    page.press(*ENTER)
    assert page.value(f"{HERE}.id") == "main"
    page.press(*TAB)
    first = page.value(f"{HERE}.getAttribute('aria-label')")
    assert page.value(f"{HERE}.closest('svg').id") == "plot-size" and "k = " in first
    assert page.value(f"getComputedStyle({HERE}).outlineStyle") == "solid"
    tip = "document.querySelector('.tip')"
    assert page.value(f"!{tip}.hidden && {tip}.textContent") == first
    page.press(*RIGHT)
    second = page.value(f"{HERE}.getAttribute('aria-label')")
    assert second != first and page.value(f"{tip}.textContent") == second
    page.press(*HOME)
    assert page.value(f"{HERE}.getAttribute('aria-label')") == first
    page.press(*TAB)  # one stop a plot
    assert page.value(f"{HERE}.closest('svg').id") == "plot-cost"
    stops = "[...document.querySelectorAll('svg')].map(s => s.querySelectorAll('[tabindex=\"0\"]').length)"
    assert set(page.value(stops)) == {0, 1}
    page.press("Escape", 27)
    assert page.value(f"{tip}.hidden") is True


def test_the_palette_follows_the_system_until_one_is_chosen(browser: Browser, report: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = opened(browser, report), opened(browser, report, dark=True)
    assert light.value(ground) == "rgb(252, 252, 250)" and dark.value(ground) == "rgb(22, 22, 21)"
    dark.value("document.querySelector('#palette-system').focus()")
    dark.press(*RIGHT)
    assert dark.value("document.querySelector('#palette-light').checked") is True
    assert dark.value(ground) == "rgb(252, 252, 250)"
    light.value("document.querySelector('#palette-dark').click()")
    assert light.value(ground) == "rgb(22, 22, 21)"
    light.value("document.querySelector('#palette-system').click()")
    assert light.value(ground) == "rgb(252, 252, 250)"


def test_a_table_is_sorted_by_the_column_that_is_asked_for(browser: Browser, report: Path) -> None:
    page = opened(browser, report)
    table = "document.querySelector('#every table')"
    page.value(f"[...{table}.querySelectorAll('button')].find(b => b.textContent === 'alpha').click()")
    values = f"[...{table}.tBodies[0].rows].map(r => parseFloat(r.cells[14].textContent)).filter(v => !isNaN(v))"
    ascending = page.value(values)
    assert len(ascending) > 10 and ascending == sorted(ascending)
    assert page.value(f"{table}.querySelectorAll('[aria-sort=ascending]').length") == 1
    page.value(f"[...{table}.querySelectorAll('button')].find(b => b.textContent === 'alpha').click()")
    assert page.value(values) == ascending[::-1]


def test_it_is_whole_without_a_script(browser: Browser, report: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.html"
    html = report.read_text()
    bare.write_text(html.split("<script>")[0] + "</body></html>")
    page = opened(browser, bare)
    assert page.value("document.querySelectorAll('svg .spot > title').length") > 50
    assert page.value("document.querySelectorAll('svg .spot[tabindex=\"0\"]').length") > 50
    page.value("document.querySelector('#palette-dark').click()")
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(22, 22, 21)"


def test_it_prints(browser: Browser, report: Path, tmp_path: Path) -> None:
    page = opened(browser, report, dark=True)
    page.printed(tmp_path / "report.pdf")
    sheet = (tmp_path / "report.pdf").read_bytes()
    assert sheet.startswith(b"%PDF") and 3 <= sheet.count(b"/Type /Page\n") <= 30
