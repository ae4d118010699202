"""Plots as files of their own: legible anywhere, the same for the same results, and of one drafter alone."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from eval.report.drawing.palette import LIGHT
from eval.report.drawing.raster import SCALE, paint
from eval.report.pictures import draw_pictures
from factory.errors import DataError

BENCHMARKS = Path(__file__).resolve().parents[3] / "docs/benchmarks"


def read(name: str) -> dict[str, Any]:
    return dict(json.loads((BENCHMARKS / name).read_text()))


def test_every_plot_is_an_svg_that_needs_no_page_and_a_png_of_the_same_size(tmp_path: Path) -> None:
    pictures = draw_pictures(read("half-hour-cpu.json"), tmp_path / "plots", mapped=read("map-cpu.json"))
    names = [picture.name for picture in pictures]
    assert names[:4] == ["size", "cost", "by-k", "by-suite"] and {"forecast", "roofline", "overlap", "map-1"} <= {
        *names
    }
    for picture in pictures:
        text = picture.svg.read_text()
        svg = ElementTree.fromstring(text)
        assert "class=" not in text and "var(" not in text and "<style" not in text and "tabindex" not in text
        assert picture.title in text and picture.words and text.count("://") == 1  # the namespace
        assert svg[2].get("fill") == LIGHT["page"]
        pixels = imread(picture.png)
        size = (float(svg.get("width", "")), float(svg.get("height", "")))
        assert (pixels.shape[1], pixels.shape[0]) == pytest.approx([SCALE * one for one in size], abs=1)
        assert 0.01 < np.mean(np.abs(pixels[..., :3] - pixels[0, 0, :3]).max(-1) > 0.1) < 0.7  # something is drawn
    before = {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    draw_pictures(read("half-hour-cpu.json"), tmp_path / "plots", mapped=read("map-cpu.json"))
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}


def test_of_one_drafter_alone(tmp_path: Path) -> None:
    results = read("stories260k-layers-cpu.json")
    for there in ("own.svg", "own.png", "map-0.png"):
        (tmp_path / there).write_text("<svg></svg>")
    (tmp_path / "map-0.svg").write_text('<svg aria-labelledby="plot-map-0-title"></svg>')
    (by_k,) = (one for one in draw_pictures(results, tmp_path, "stories--keep2") if one.name == "by-k")
    assert "stories--keep2, k = 4" in by_k.words and "prompt lookup" in by_k.words and "keep1" not in by_k.words
    left = {path.name for path in tmp_path.iterdir()}
    assert {"own.svg", "own.png"} <= left and not {"map-0.svg", "map-0.png"} & left
    with pytest.raises(DataError, match="nobody took no part in this evaluation"):
        draw_pictures(results, tmp_path, "nobody")
    with pytest.raises(DataError, match="not what `factory eval` writes"):
        draw_pictures({"candidates": []}, tmp_path)


def test_colours_and_places_are_painted_as_written(tmp_path: Path) -> None:
    drawn = ElementTree.fromstring(
        '<svg width="40" height="20"><rect width="40" height="20" fill="#ffffff"/><g transform="translate(10 5)">'
        '<rect x="0" y="0" width="10" height="10" fill="#ff0000"/></g><g opacity="0.5"><circle cx="30" cy="10" r="8" '
        'fill="#0000ff"/></g></svg>'
    )
    paint(drawn, tmp_path / "small.png")
    pixels = imread(tmp_path / "small.png")[..., :3]
    assert pixels.shape[:2] == (40, 80)
    assert pixels[20, 30] == pytest.approx([1, 0, 0]) and pixels[4, 30] == pytest.approx([1, 1, 1])
    assert pixels[20, 60] == pytest.approx([0.5, 0.5, 1], abs=0.01) and pixels[20, 4] == pytest.approx([1, 1, 1])
    with pytest.raises(ValueError, match="<image>"):
        paint(ElementTree.fromstring('<svg width="4" height="4"><image/></svg>'), tmp_path / "other.png")
