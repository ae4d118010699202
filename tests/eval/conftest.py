"""A tiny drafter, really built, and how a test has it judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.evaluation import evaluate
from eval.plan import EvalPlan, load_plan
from factory.artifact import Artifact
from factory.building.build import build
from factory.progress import Progress
from factory.recipes.recipe import load

RECIPE = """\
name: tiny
target: {{model: {target}}}
data: {{prompts: bos, written_by: target, samples: 8, max_new_tokens: 12, batch: 8, held_out: 0.2}}
stages:
  - {{kind: drop_layers, keep: 2, score: even}}
  - {{kind: distill, epochs: 1, lr: 0.003, batch: 4}}
keep_raw: true
"""


def silent(_done: int, _total: int, _what: str) -> None:
    pass


@pytest.fixture
def built(tiny_folder: Path, tmp_path: Path) -> Artifact:
    """Two of the four layers of a tiny target, distilled; its untrained sibling lies beside it."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE.format(target=tiny_folder))
    drafter, _raw = build(load(recipe, [], None), tmp_path / "artifacts", silent)
    return drafter


@pytest.fixture
def judge() -> Callable[..., dict[str, Any]]:
    """`judge(artifact, out, prompts_file=None, **changes)` runs the plan `smoke` with changes; returns its results."""

    def run(
        artifact: Artifact, out: Path, prompts_file: Path | None = None, progress: Progress = silent, **changes: Any
    ) -> dict[str, Any]:
        plan = EvalPlan.model_validate({**load_plan("smoke").model_dump(), **changes})
        return evaluate([artifact], plan, target=None, out=out, prompts_file=prompts_file, progress=progress)

    return run
