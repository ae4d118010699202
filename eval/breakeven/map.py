"""The break-even map: speedup over batch, temperature and context length, and where to switch drafting off.

Each cell is timed as an evaluation is: the target alone and every (drafter, k) interleaved on the same batches of
prompts, in one engine. Outputs are short and prompts long, so a cell's speedup is that of decoding, from the second
token on; the one with both prefills counted stands beside it. Cells that are done are on disk: a map that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from eval.breakeven.map_prompts import Lengthener
from eval.breakeven.switch import Figures, cell_figures, place_of, rule
from eval.measurement import CHOOSE, Arm, Block, Cell
from eval.parity import LARGEST_EXACT, Audit
from eval.plan import EvalPlan
from eval.report.writing import MAP, redraw, require_writable
from eval.suites import load_suite, suite_from_file
from eval.timing.arms import RAW, Entry
from eval.timing.bench import Bench, Bounds
from eval.timing.memory import Load, memory_errors
from eval.timing.partial import Partial
from eval.timing.placing import require_devices
from eval.timing.threads import threads
from eval.timing.together import Order, facts, open_bench, words
from eval.verdict.rows import drafter_name
from factory.artifact import Artifact
from factory.decoding.decoder import Generation
from factory.errors import ArtifactError, DataError, ModelError
from factory.files.atomic import write_atomically
from factory.models.loading import fingerprint, resolve_device
from factory.processes import ALONE, Processes
from factory.progress import Progress, step
from factory.provenance import git_sha, hardware, versions

SCHEMA_VERSION = 1
KEPT = ".map"  # where cells lie while not all are done


def measure_map(
    artifacts: Sequence[Artifact],
    plan: EvalPlan,
    *,
    target: str | None,
    out: Path,
    prompts_file: Path | None,
    progress: Progress,
    together: Processes = ALONE,
) -> Figures:
    """Measure the map of the best of these artifacts and of prompt lookup; returns what map.json holds.

    Writes map.json and report.html into `out`. `target` names another copy of the target; `prompts_file` replaces the
    plan's suites; `together` as in `evaluate`. Raises ArtifactError, DataError, ModelError, RecipeError,
    UnsupportedModel, each before anything is timed, and ModelError where the target's weights changed meanwhile.
    """
    require_devices(plan, together)
    artifact = best_artifact(artifacts)
    artifact.verify(progress)
    require_writable(out)
    field = [Entry(artifact, plan.ks, plan.auto_k), Entry(None, plan.lookup_ks, plan.auto_k)]
    # Batches and outputs are the map's, so that parity and near-tie bounds are too; one batch warms an arm up.
    changes = {"batches": plan.map_batches, "max_new_tokens": plan.map_new_tokens, "warmup_prompts": 1}
    with threads(plan.threads):
        mapper = Mapper(field, plan.model_copy(update=changes), target, prompts_file, together)
        found = mapper.found(out / KEPT, progress)
    write_atomically(out / MAP, json.dumps(found, indent=1, allow_nan=False) + "\n")
    shutil.rmtree(out / KEPT, ignore_errors=True)
    redraw(out)
    return found


def best_artifact(artifacts: Sequence[Artifact]) -> Artifact:
    """The one whose evaluation has the best lower bound, on the prompts to choose by.

    Drafters kept as they were before training take no part beside the trained. Raises ArtifactError where several
    could be meant and one of them has no evaluation.
    """
    distinct = {artifact.folder.resolve(): artifact for artifact in artifacts}
    trained = [one for one in distinct.values() if not one.name.endswith(RAW)] or list(distinct.values())
    if not trained:
        raise ArtifactError("no artifact to map: `factory build RECIPE` makes one, `factory ls` lists them")
    if len(trained) == 1:
        return trained[0]
    unknown = [str(one.folder) for one in trained if not one.evals()]
    if unknown:
        raise ArtifactError(
            f"{', '.join(unknown)}: not evaluated, so which drafter is the best is not known; "
            "run `factory eval` on all of them first, or name one alone"
        )
    return max(trained, key=_lower_bound)


def _lower_bound(artifact: Artifact) -> float:
    rows = artifact.evals()[-1]["candidates"]
    mine = [row for row in rows if row["artifact"] == artifact.name and row["prompt_set"] == CHOOSE]
    return max((row["speedup_low"] or 0.0 for row in mine if row["matches_target"]), default=0.0)


class Mapper:
    """One map, cell by cell. What cannot be measured is known before anything is loaded."""

    def __init__(
        self,
        field: Sequence[Entry],
        plan: EvalPlan,
        target: str | None,
        prompts_file: Path | None,
        together: Processes = ALONE,
    ) -> None:
        """`plan` with the map's batches and lengths in the place of its own. Raises DataError."""
        self._together = together
        self._field, self._plan, self._target = field, plan, target
        self._anchor = next(entry.artifact for entry in field if entry.artifact is not None)
        self._device = resolve_device(plan.device)
        self._arms = [arm for entry in field for arm in entry.arms]
        self._largest_k = max(arm.most for arm in self._arms)
        self._context = min(shape.context for entry in field for shape in entry.shapes)
        self._suites = [suite_from_file(prompts_file)] if prompts_file else [load_suite(name) for name in plan.suites]
        tokenizer = self._anchor.load_tokenizer()
        special = frozenset(tokenizer.all_special_ids)
        prompts = Lengthener(self._suites, lambda text: tokenizer(text)["input_ids"], special)
        self._samples = {batch: min(plan.map_samples, prompts.count // batch) for batch in plan.batches}
        if min(self._samples.values()) < 2:
            raise DataError(
                f"{prompts.count} prompts do not make two batches of {max(plan.batches)}, so there would be no "
                "interval: give more prompts, or lower map_batches in the plan"
            )
        room = self._context - plan.max_new_tokens - 1
        if room < 1:
            raise DataError(
                f"map_new_tokens {plan.max_new_tokens} leaves no room for a prompt in a context of {self._context}: "
                "lower it in the plan"
            )
        most = max(samples * batch for batch, samples in self._samples.items())
        self._prompts = {
            tokens: prompts.prompts(tokens, most)
            for tokens in sorted({min(asked, room) for asked in plan.map_contexts})
        }

    def found(self, folder: Path, progress: Progress) -> Figures:
        """What map.json holds. Cells are kept in `folder` as they are done, and none found there is measured again."""
        plan = self._plan
        order = Order(self._field, plan, self._target, self._context)
        bench = open_bench(order, lambda: None, self._together, progress)
        known = self._facts(bench)
        partial = Partial(folder, known)
        blocks = [
            (context, Block(f"context {context}", temperature, batch, CHOOSE))
            for context in self._prompts
            for temperature in plan.temperatures
            for batch in plan.batches
        ]
        kept = {block: partial.cells(block, [Arm(), *self._arms]) for _, block in blocks}
        missing = [(context, block) for context, block in blocks if kept[block] is None]
        for block, timed in self._measured(bench, missing, partial, progress):
            partial.keep(block, timed)
            kept[block] = timed
        bench.close()
        cells = [cell_figures(kept[block] or [], context, plan.seed) for context, block in blocks]
        drafters = []
        for entry in self._field:
            one = {
                "artifact": entry.arms[0].artifact,
                "drafter": entry.arms[0].drafter,
                "ks": [arm.k for arm in entry.arms],
            }
            name = drafter_name(one)
            pays = {
                place_of(cell): best["pays"] for cell in cells for best in cell["best"] if drafter_name(best) == name
            }
            drafters.append({**one, "rule": rule(name, pays)})
        return {
            "schema_version": SCHEMA_VERSION,
            **known,
            "git": git_sha(),
            "words": " ".join([self._words(), *words(bench)]),
            "drafters": drafters,
            "cells": cells,
        }

    def _facts(self, bench: Bench) -> Figures:
        """All but the code that decides a cell: an interrupted map goes on only where none of it changed."""
        plan, made_from = self._plan, self._anchor.manifest["target"]
        readers = [run.reader.name for run in bench.running.values() if run.reader is not None]
        return {
            "target": {key: made_from.get(key) for key in ("model", "revision", "identity")},
            "artifact": {"name": self._anchor.name, "manifest_sha256": self._anchor.manifest_digest()},
            "batches": sorted(plan.batches),
            "contexts": list(self._prompts),
            "temperatures": list(plan.temperatures),
            "dtype": str(bench.target.dtype).removeprefix("torch."),
            "reader": bench.reader.name,
            "drafter_reader": readers[0],
            "suites": [{"name": one.name, "version": one.version, "sha256": one.sha256} for one in self._suites],
            "plan": plan.model_dump(mode="json"),
            "hardware": hardware(self._device),
            "versions": versions(),
            "placement": facts(bench),
        }

    def _words(self) -> str:
        plan = self._plan
        names = " and ".join(suite.name for suite in self._suites)
        return (
            f"Speedup of decoding, from the second token on, in outputs of {plan.max_new_tokens} tokens: ratio of "
            f"totals over up to {max(self._samples.values())} batches of prompts, and a 95 % bootstrap interval over "
            f"batches. Prompts are those of {names}, joined up to the length. Rows that end leave their batch, and "
            "none takes their place. Off: no k's interval lies above 1. The best k was chosen on these same prompts."
        )

    def _measured(
        self, bench: Bench, missing: Sequence[tuple[int, Block]], partial: Partial, progress: Progress
    ) -> Iterator[tuple[Block, list[Cell]]]:
        """Each missing block's cells, timed and judged; the target alone comes first."""
        if not missing:
            return
        plan = self._plan
        parity, bounds = self._sound(bench, partial, progress)
        alone: dict[int, dict[int, Generation]] = {}  # by context: what the target writes one prompt at a time
        for done, (context, block) in enumerate(missing):
            progress(done, len(missing), f"cells, context {context}, batch {block.batch}")
            if block.temperature == 0 and context not in alone:
                alone[context] = bench.alone(self._prompts[context])
            prompts = self._prompts[context][: block.batch * self._samples[block.batch]]
            with memory_for(Load(block.batch, self._largest_k, context, plan.max_new_tokens)):
                timed = bench.cells(block, prompts, self._arms, 1)
                bench.judge(timed, alone.get(context, {}), parity, bounds)
            if fingerprint(bench.target) != bench.weights:
                raise ModelError("the target's weights changed during the run, so no figure of it is true: not kept")
            yield block, timed
        progress(len(missing), len(missing), "cells")

    def _sound(self, bench: Bench, partial: Partial, progress: Progress) -> tuple[dict[Arm, Audit], Bounds]:
        """Parity and near-tie bounds, made now or before."""
        found = partial.parity([Arm(), *self._arms])
        if found is None:
            ks = sorted({arm.most for arm in self._arms})
            with step(progress, "measuring what a near-tie is"):
                bounds = bench.bounds(next(iter(self._prompts.values())), ks)
            found = self._parity(bench, progress), bounds
            partial.keep_parity(*found)
        return found

    def _parity(self, bench: Bench, progress: Progress) -> dict[Arm, Audit]:
        """At the smallest and the largest batch, with a float64 target on the CPU where it is small enough."""
        plan, done, batches = self._plan, 0, sorted({min(self._plan.batches), max(self._plan.batches)})
        prompts = [prompt.ids for prompt in next(iter(self._prompts.values()))]
        limits = replace(bench.limits, max_new_tokens=min(plan.parity_new_tokens, plan.max_new_tokens))

        def told() -> None:
            nonlocal done
            done += 1
            progress(done, len(batches) * (1 + len(self._arms)), "parity with the target")

        progress(0, len(batches) * (1 + len(self._arms)), "parity with the target")
        exact = None
        if bench.target.num_parameters() <= LARGEST_EXACT:
            exact = self._anchor.load_target(self._target, torch.float64, "cpu")
        asked = [(batch, prompts[: max(batch, plan.parity_prompts)]) for batch in batches]
        return bench.parity(exact, asked, limits, told)


@contextmanager
def memory_for(load: Load) -> Iterator[None]:
    """Raises DataError where memory runs out in the body; in the words of an evaluation, and with a map's keys."""
    try:
        with memory_errors(load):
            yield
    except DataError as error:
        raise DataError(f"{error} (of a map the keys are map_batches, map_contexts and map_new_tokens)") from error
