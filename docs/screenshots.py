"""The pictures of docs/pictures/: the report of a measured drafter in a real Chromium, and its plots.

    python docs/screenshots.py                                  # of docs/benchmarks/half-hour-cpu.json and map-cpu.json
    python docs/screenshots.py --of artifacts/demo --only lengths
    python docs/screenshots.py --of docs/benchmarks/stories260k-layers-cpu.json --only front --to docs/pictures/four

Needs Chromium on the path. `lengths.png` is made where the results hold accepted lengths. Those of half-hour-cpu.json,
being of an earlier version, do not, so it is of `make demo`; counts do not depend on how fast the machine is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from browser import Browser, find_chromium
from PIL import Image

from eval.report.writing import MAP, REPORT, RESULTS, redraw

HERE = Path(__file__).resolve().parent
COLOURS = 256  # of a picture's own palette, which makes it a third as long

# The element of a picture on a page of that width, and whether it is dark; without an element, what is seen first.
PICTURES: dict[str, tuple[str | None, int, bool]] = {
    "report": (None, 1280, False),
    "report-dark": (None, 1280, True),
    "report-narrow": (None, 360, False),
    "verdict": ("#verdict", 1280, False),
    "speedups": ("#speedups", 1280, False),
    "lengths": ("#accepted", 1280, False),
    "time": ("#time", 1280, False),
    "forecast": ("#plot-forecast", 1280, False),
    "map": ("#map .plots", 1280, False),
    "training": ("#training .plots", 1280, False),
}
MORE = {"front": ("#front", 1280, False)}  # which are taken only where they are asked for
HEIGHTS = {1280: 1240, 360: 900}


def main() -> None:
    """Draw the report into a folder of its own, and take its pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--of", type=Path, help="where an eval wrote its results, or such a file")
    parser.add_argument("--to", type=Path, default=HERE / "pictures")
    parser.add_argument("--only", nargs="*", choices=sorted(PICTURES | MORE), default=sorted(PICTURES))
    arguments = parser.parse_args()
    program = find_chromium()
    if program is None:
        sys.exit("no Chromium on the path: apt-get install chromium, or another browser of that family")
    arguments.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        drawn = Path(scratch) / "drawn"
        drawn.mkdir()
        copy_results(arguments.of, drawn)
        held = any(row.get("accepted_lengths") for row in json.loads((drawn / RESULTS).read_text())["rows"])
        redraw(drawn)
        with Browser(program, Path(scratch) / "profile") as browser:
            for name in (one for one in arguments.only if held or one != "lengths"):
                take(browser, drawn / REPORT, name, arguments.to / f"{name}.png")


def copy_results(source: Path | None, to: Path) -> None:
    """What a report is drawn of, into a folder where it may be drawn."""
    if source is None:
        shutil.copy(HERE / "benchmarks/half-hour-cpu.json", to / RESULTS)
        shutil.copy(HERE / "benchmarks/map-cpu.json", to / MAP)
        return
    if source.is_file():
        shutil.copy(source, to / RESULTS)
        return
    for name in (RESULTS, MAP):
        if (source / name).is_file():
            shutil.copy(source / name, to / name)


def take(browser: Browser, report: Path, name: str, path: Path) -> None:
    """One picture, its colours counted so that it is short; an element that the page lacks is left out, and said."""
    selector, width, dark = (PICTURES | MORE)[name]
    page = browser.open(report.as_uri(), width=width, height=HEIGHTS[width], dark=dark)
    if selector is not None and not page.value(f"document.querySelector({json.dumps(selector)}) !== null"):
        print(f"{name}: the report has no {selector}")
        return
    page.picture(path, selector=selector)
    Image.open(path).convert("RGB").quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        path, optimize=True
    )
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
