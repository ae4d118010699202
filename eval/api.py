"""`eval.evaluate`: drafters judged in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.plan import EvalPlan, load_plan
from factory.artifact import Artifact, list_artifacts
from factory.errors import DataError, FactoryError
from factory.processes import ALONE, Processes
from factory.progress import Progress, silent

Drafters = Artifact | str | Path


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found. `results` is all of results.json; its shape is that of `eval.verdict.results`."""

    results: dict[str, Any]
    folder: Path  # holds results.json, tokens.jsonl, report.html

    @property
    def verdict(self) -> dict[str, Any]:
        """Which drafter at which k, its speedup over the target alone with a 95 % interval, and the reason in words."""
        found: dict[str, Any] = self.results["verdict"]
        return found

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One for each drafter, k, suite, temperature and batch; units are in the names of the figures."""
        found: list[dict[str, Any]] = self.results["rows"]
        return found

    @property
    def report(self) -> Path:
        """report.html."""
        return self.folder / "report.html"


def evaluate(
    artifacts: Drafters | Sequence[Drafters],
    *,
    plan: str | Path | Mapping[str, Any] | EvalPlan = "default",
    target: str | Path | None = None,
    out: str | Path | None = None,
    prompts: str | Path | None = None,
    progress: Progress | None = None,
    together: Processes = ALONE,
) -> Evaluation:
    """Are the drafters' outputs the target's own, and are they faster? `factory eval` in one call.

    `artifacts`: drafters, as `factory.build` and `factory.pull` give them, or folders of them. `plan`: a shipped plan's
    name (default, demo, smoke), a YAML file, or what would stand in one. `target`: another copy of the target, a folder
    or a Hub name. `out`: the folder for the report; the first of `artifacts` where it is not given. `prompts`: a .jsonl
    or .txt file in place of the plan's suites. `progress`: called with (done, total, what). `together`: the launched
    processes of which this is the first.

    Writes results.json, tokens.jsonl and report.html into `out`, and evals/<id>.json into every artifact; interrupted,
    the same call goes on from what was measured. Raises FactoryError: RecipeError with every fault of the plan,
    ArtifactError, DataError, ModelError, UnsupportedModel.
    """
    chosen = plan if isinstance(plan, EvalPlan) else load_plan(plan)
    given = [artifacts] if isinstance(artifacts, Artifact | str | Path) else list(artifacts)
    judged = artifacts_of(given)
    prompts_file = None if prompts is None else Path(prompts)
    if prompts_file is not None and not prompts_file.is_file():
        raise DataError(f"{prompts_file}: no such file of prompts")
    folder = _folder_of(given[0]) if out is None else Path(out)
    from eval.evaluation import evaluate as measure  # imports torch: only once there is surely something to judge

    results = measure(
        judged,
        chosen,
        target=None if target is None else str(target),
        out=folder,
        prompts_file=prompts_file,
        progress=progress or silent,
        together=together,
    )
    return Evaluation(results, folder)


def artifacts_of(given: Sequence[Drafters]) -> list[Artifact]:
    """The artifacts meant, those in a folder by name. Raises ArtifactError; FactoryError where there is none."""
    found = [made for one in given for made in ([one] if isinstance(one, Artifact) else list_artifacts(one))]
    if not found:
        named = ", ".join(str(_folder_of(one)) for one in given) or "artifacts"
        raise FactoryError(f"{named}: no artifact there; `factory build RECIPE` makes one")
    return found


def _folder_of(one: Drafters) -> Path:
    return one.folder if isinstance(one, Artifact) else Path(one)
