"""Figures of an enlarged target say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from factory.building.build import build
from factory.models.loading import load_model
from factory.recipes.recipe import load
from factory.surgery.carving import copy_beside
from factory.surgery.enlarge import Sizes, enlarge

RECIPE = """\
name: tiny
target: {{model: {target}}}
stages:
  - {{kind: drop_layers, keep: 2, score: even}}
"""


@pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)
def test_a_drafter_of_an_enlarged_target_is_judged_and_labelled(
    tiny_folder: Path, tmp_path: Path, judge: Callable[..., dict[str, Any]]
) -> None:
    large = tmp_path / "large"
    small = load_model(tiny_folder, dtype=torch.float32)
    enlarge(small, Sizes(5, 64, 96, 8, 4)).save_pretrained(large)
    copy_beside(tiny_folder, large)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE.format(target=large))
    (drafter,) = build(load(recipe, [], None), tmp_path / "artifacts", lambda *_: None)
    found = judge(drafter, tmp_path / "out")
    assert all(one["divergences"] == 0 for one in found["parity"])
    (said,) = [note for note in found["notes"] if "enlarged" in note]
    assert said.startswith("The target was enlarged from 4 layers x 32 (FFN 48) to 5 x 64 (FFN 96) without changing")
