"""Run a plan: parity first, then time, choose, and time the choice again on fresh prompts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from eval.measurement import AUTO, CHOOSE, CONFIRM, Arm, ArmFacts, Block, Cell
from eval.parity import LARGEST_EXACT, PROBES, Audit
from eval.plan import EvalPlan
from eval.report.published import published_figures
from eval.report.writing import require_writable, write
from eval.timing.arms import Entry, entries, reason
from eval.timing.bench import Bench, Bounds
from eval.timing.material import mixed, outputs_of, prompt_sets_of, prompts_of, repeats_of
from eval.timing.memory import PACKABLE, Load, Models, memory_errors, require_memory
from eval.timing.partial import Partial
from eval.timing.placing import free_for, require_devices
from eval.timing.threads import threads
from eval.timing.together import Order, facts, open_bench, words
from eval.verdict.choose import pool, promising, shortlist
from eval.verdict.figures import Setting
from eval.verdict.results import Findings
from eval.verdict.trainings import trainings_of
from factory.artifact import Artifact
from factory.decoding.costs import AT_ONCE
from factory.decoding.decoder import Generation
from factory.decoding.graphed import GraphedReader
from factory.errors import ModelError
from factory.models.loading import fingerprint, resolve_device, resolve_dtype
from factory.processes import ALONE, Processes
from factory.progress import Progress, step
from factory.provenance import hardware, versions
from factory.surgery.enlarge import enlarged_from


def evaluate(
    artifacts: list[Artifact],
    plan: EvalPlan,
    *,
    target: str | None,
    out: Path,
    prompts_file: Path | None,
    progress: Progress,
    together: Processes = ALONE,
) -> dict[str, Any]:
    """Measure artifacts as the plan says; returns what results.json holds.

    Writes results.json, tokens.jsonl and report.html into `out`, and evals/<id>.json into every artifact. Where it is
    interrupted, what is measured stays in `out`, and the same call goes on from there.
    `target` names another copy of the target; `prompts_file` replaces the plan's suites. `together`: this is the
    first of so many launched processes, and the others are in `eval.timing.together.follow`. Raises ArtifactError,
    DataError, ModelError, RecipeError, UnsupportedModel.
    """
    require_devices(plan, together)
    field = entries(artifacts, plan)
    require_writable(out)
    device = resolve_device(plan.device)
    with threads(plan.threads):
        run = _Run(field, plan, target, device, prompts_file, progress, together)
        found = run.findings(out)
        results = found.results()
        results["published"] = published_figures(artifacts, results)
    with step(progress, "writing the report"):
        write(results, [cell for _, cell in (*found.first, *found.second)], out)
    run.partial.remove()
    for entry in field:
        if entry.artifact is not None:
            with suppress(OSError):  # an artifact on a read-only disk is measured all the same; `out` has it all
                entry.artifact.write_eval({key: value for key, value in results.items() if key != "published"})
    return results


class _Run:
    """One evaluation, phase by phase."""

    def __init__(
        self,
        field: Sequence[Entry],
        plan: EvalPlan,
        target: str | None,
        device: str,
        prompts_file: Path | None,
        progress: Progress,
        together: Processes,
    ) -> None:
        self._together = together
        self._field, self._plan, self._target, self._device = field, plan, target, device
        self._anchor = next(entry.artifact for entry in field if entry.artifact is not None)
        self._progress, self._count = progress, _Counter(progress)
        self._context = min(shape.context for entry in field for shape in entry.shapes)
        self._sets = prompt_sets_of(self._anchor, plan, prompts_file, self._context)
        self._arms = [arm for entry in field for arm in entry.arms]
        self._require_memory()

    def findings(self, out: Path) -> Findings:
        """All of it; what an interrupted run left in `out` is not measured again."""
        plan, count = self._plan, self._count
        order = Order(self._field, plan, self._target, self._context)
        bench = open_bench(order, count, self._together, self._progress)
        model = bench.target
        dtype = str(model.dtype).removeprefix("torch.")
        self.partial = Partial(out, self._decisive(bench, dtype))
        exact = model.num_parameters() <= LARGEST_EXACT
        parity, bounds = self._sound(bench, exact)

        count.phase("timing", outputs_of(plan, self._sets, CHOOSE, plan.batches) * (len(self._arms) + 1))
        first = self._measured(bench, self._arms, CHOOSE, plan.batches, parity, bounds)
        candidates = pool([pair for pair in first if pair[0].batch == plan.batches[0]], plan.seed)
        second: list[tuple[Cell, Cell]] = []
        if promising(candidates):
            again = [candidate.arm for candidate in shortlist(candidates)]
            outputs = outputs_of(plan, self._sets, CONFIRM, plan.batches[:1])
            count.phase("timing again, on fresh prompts", outputs * (len(again) + 1))
            second = self._measured(bench, again, CONFIRM, plan.batches[:1], parity, bounds)
        bench.close()
        notes = [*words(bench), reason(bench.reader, "the target")]
        notes += [note for run in bench.running.values() for note in run.notes]
        enlarged = enlarged_from(bench.target.config.to_dict())
        if enlarged is not None:
            notes.append(f"The target was {enlarged}.")
        readers = [run.reader for run in bench.running.values()]
        if bench.sampling(0.0).looks_back and any(isinstance(reader, GraphedReader) for reader in readers):
            notes.append("Penalties look back, so drafts are recorded step by step, not as a whole.")
        if self.partial.kept:
            notes.append(
                f"Blocks (a suite at a temperature and a batch) kept of an interrupted run: {self.partial.kept}."
            )
        made_from = self._anchor.manifest["target"]
        return Findings(
            plan=plan,
            setting=Setting(self._device, dtype, bench.reader.name, plan.seed),
            target={
                **{key: made_from.get(key) for key in ("model", "revision", "identity")},
                "context": self._context,
                "weights_unchanged": True,
            },
            facts=self._facts(bench, dtype),
            sets=self._sets,
            parity=parity,
            exact=exact,
            placement=facts(bench),
            first=first,
            second=second,
            notes=[note for note in notes if note is not None],
            trainings=[
                one
                for artifact in (entry.artifact for entry in self._field if entry.artifact is not None)
                for one in trainings_of(artifact.name, artifact.manifest["facts"])
            ],
        )

    def _require_memory(self) -> None:
        """Raises DataError, before any weight is loaded, for what is known not to fit."""
        plan = self._plan
        shapes = [entry.shapes for entry in self._field if entry.shapes]
        dtype = str(resolve_dtype(plan.dtype, self._device)).removeprefix("torch.")
        kinds = {plan.reader, plan.drafter_reader}
        packed = self._device == "cpu" and dtype in PACKABLE and not kinds <= {"eager", "lean"}
        exact = self._device == "cpu" and shapes[0][1].parameters <= LARGEST_EXACT
        graphed = self._device.startswith("cuda") and not kinds <= {"eager", "lean"}
        models = Models(shapes[0][1], [drafter for drafter, _ in shapes], dtype, packed, exact, graphed)
        free = free_for(plan, self._device, self._together)
        require_memory(models, self._load(max(plan.batches)), free)

    def _load(self, batch: int) -> Load:
        """The most that a batch asks of memory."""
        longest = max(len(prompt.ids) for one in self._sets for prompt in (*one.choose, *one.confirm))
        measured = AT_ONCE if any(arm.k == AUTO for arm in self._arms) else 0  # to learn what a round costs
        return Load(batch, max(arm.most for arm in self._arms), longest, max(self._plan.max_new_tokens, measured))

    def _decisive(self, bench: Bench, dtype: str) -> dict[str, Any]:
        """Everything that decides the figures, but the code."""
        artifacts = [entry.artifact for entry in self._field if entry.artifact is not None]
        readers = {run.drafter.name: run.reader.name for run in bench.running.values() if run.reader is not None}
        return {
            "plan": self._plan.model_dump(mode="json"),
            "artifacts": {artifact.name: artifact.manifest_digest() for artifact in artifacts},
            "target": self._anchor.manifest["target"]["identity"],
            "suites": {one.suite.name: one.suite.sha256 for one in self._sets},
            "dtype": dtype,
            "readers": {"target": bench.reader.name, "drafters": readers},
            "hardware": hardware(self._device),
            "versions": versions(),
            "placement": facts(bench),
        }

    def _facts(self, bench: Bench, dtype: str) -> dict[Arm, ArmFacts]:
        found = {Arm(): _target_facts(bench.target)}
        for entry in self._field:
            reader = bench.running[entry].reader
            facts = replace(entry.facts(dtype), drafter_reader=reader.name if reader is not None else None)
            found |= dict.fromkeys(entry.arms, facts)
        return found

    def _sound(self, bench: Bench, exact: bool) -> tuple[dict[Arm, Audit], Bounds]:
        """Parity and near-tie bounds, made now or before."""
        arms = [Arm(), *self._arms]
        found = self.partial.parity(arms)
        if found is None:
            with memory_errors(self._load(max(self._plan.batches))):
                parity = self._parity(bench, exact)
                probes = mixed(self._sets, max(PROBES, *self._plan.batches))
                with step(self._progress, "measuring what a near-tie is"):
                    bounds = bench.bounds(probes, sorted({arm.most for arm in self._arms}))
            self._require_unchanged(bench)
            self.partial.keep_parity(parity, bounds)
            found = parity, bounds
        return found

    def _require_unchanged(self, bench: Bench) -> None:
        if fingerprint(bench.target) != bench.weights:
            raise ModelError("the target's weights changed during the run, so what it measured is not true: not kept")

    def _parity(self, bench: Bench, exact: bool) -> dict[Arm, Audit]:
        """At every batch of the plan, with a float64 target on the CPU where that is small enough, else as timed."""
        plan, count = self._plan, self._count
        prompts = [prompt.ids for prompt in mixed(self._sets, plan.parity_prompts)]
        limits = replace(bench.limits, max_new_tokens=min(plan.parity_new_tokens, plan.max_new_tokens))
        batches = sorted({min(batch, len(prompts)) for batch in plan.batches})
        count.phase("parity with the target", len(batches) * (1 + len(self._arms)))
        target = self._anchor.load_target(self._target, torch.float64, "cpu") if exact else None
        return bench.parity(target, [(batch, prompts) for batch in batches], limits, count)

    def _measured(
        self,
        bench: Bench,
        arms: Sequence[Arm],
        stage: str,
        batches: Sequence[int],
        parity: dict[Arm, Audit],
        bounds: Bounds,
    ) -> list[tuple[Cell, Cell]]:
        """(baseline cell, cell) pairs, the baselines' own among them, timed and judged."""
        pairs = []
        for one in self._sets:
            prompts = prompts_of(one, stage)
            for temperature in self._plan.temperatures:
                reference: dict[int, Generation] = {}
                for batch in sorted(batches):  # what is written one prompt at a time is what larger batches must write
                    block = Block(one.suite.name, temperature, batch, stage)
                    cells = self.partial.cells(block, [Arm(), *arms])
                    if cells is None:
                        with memory_errors(self._load(batch)):
                            cells = bench.cells(block, prompts, arms, repeats_of(self._plan, stage))
                            if batch == 1:
                                reference = cells[0].written
                            elif temperature == 0 and not reference:
                                reference = bench.alone(prompts)
                            bench.judge(cells, reference, parity, bounds)
                        self._require_unchanged(bench)
                        self.partial.keep(block, cells)
                    else:
                        reference = cells[0].written if batch == 1 else reference
                        self._count.skip(sum(len(one.generations) for cell in cells for one in cell.timed))
                    pairs += [(cells[0], cell) for cell in cells]
        return sorted(pairs, key=lambda pair: batches.index(pair[0].batch))


class _Counter:
    """Counts what is written, phase by phase, for a progress bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._what, self._done, self._total = progress, "", 0, 0

    def phase(self, what: str, total: int) -> None:
        """A new phase of `total` pieces."""
        self._what, self._done, self._total = what, 0, total
        self._progress(0, total, what)

    def __call__(self) -> None:
        self.skip(1)

    def skip(self, count: int) -> None:
        """That many pieces are done already."""
        self._done += count
        self._progress(self._done, self._total, self._what)


def _target_facts(model: PreTrainedModel) -> ArmFacts:
    size = sum(path.stat().st_size for path in Path(model.name_or_path).glob("*.safetensors"))
    return ArmFacts(int(model.num_parameters()), size or None, None)
