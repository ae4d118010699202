"""A tiny drafter, really built and really evaluated, once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from eval.evaluation import evaluate
from eval.plan import EvalPlan, load_plan
from factory import cli
from factory.artifact import Artifact
from factory.building.build import build
from factory.publishing.contents import Entry
from factory.publishing.publish import Wishes, passed, prepared
from factory.recipes.recipe import load

RECIPE = """\
name: tiny
target: {model: target}
data: {prompts: bos, written_by: target, samples: 4, max_new_tokens: 8, batch: 4, held_out: 0.25}
stages:
  - {kind: drop_layers, keep: 2, score: even}
"""


def silent(_done: int, _total: int, _what: str) -> None:
    pass


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory, tiny_target: Callable[..., Path]) -> Path:
    """The folder of two layers of a tiny target, measured: slower than the target alone, since it is random."""
    folder = tmp_path_factory.mktemp("evaluated")
    tiny_target("llama", folder / "target")
    (folder / "tiny.yaml").write_text(RECIPE)
    torch.manual_seed(0)
    [made] = build(load(folder / "tiny.yaml", [], None), folder / "artifacts", silent)
    changes = {
        "ks": (2, 3),
        "auto_k": False,
        "lookup_ks": (2,),
        "temperatures": (0.0,),
        "reader": "eager",
        "drafter_reader": "eager",
    }
    plan = EvalPlan.model_validate({**load_plan("smoke").model_dump(), **changes})
    evaluate([made], plan, target=None, out=folder / "out", prompts_file=None, progress=silent)
    return made.folder


@pytest.fixture(scope="session")
def entries(evaluated: Path) -> list[Entry]:
    """All that publishing it sends, drawn once."""
    made, name = Artifact.open(evaluated), "ada/tiny-drafter"
    wishes = Wishes(license="mit", even_if_slower="to be sent by tests")
    with prepared(made, name, passed(made, name, wishes), wishes, network=False) as publication:
        return [
            replace(one, source=Path(one.source).read_bytes()) if isinstance(one.source, Path) else one
            for one in publication.entries
        ]


@pytest.fixture
def artifact(evaluated: Path, tmp_path: Path) -> Artifact:
    """A copy of it, for a test to change."""
    return Artifact.open(shutil.copytree(evaluated, tmp_path / "tiny"))


@pytest.fixture
def measured(artifact: Artifact) -> Callable[..., Artifact]:
    """`measured(change)` keeps another evaluation of it, the last one as `change` leaves it."""

    def keep(change: Callable[[dict[str, Any]], object]) -> Artifact:
        results = json.loads(json.dumps(artifact.evals()[-1]))
        change(results)
        artifact.write_eval(results)
        return artifact

    return keep


@pytest.fixture
def faster(measured: Callable[..., Artifact]) -> Artifact:
    """One whose evaluation says that it is faster."""

    def change(results: dict[str, Any]) -> None:
        for row in (*results["candidates"], *results["rows"]):
            if row["artifact"] == "tiny":
                row |= {"speedup": 1.5, "speedup_low": 1.25, "speedup_high": 1.75}

    return measured(change)


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """`publish(folder, "--to", ...)` -> (exit code, stdout, stderr), in this process; quiet, and with a licence."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: object) -> tuple[int, str, str]:
        given = ["publish", *map(str, arguments), "--quiet"]
        result = CliRunner().invoke(cli.app, [*given, *([] if "--license" in given else ["--license", "mit"])])
        return result.exit_code, result.stdout, result.stderr

    return run
