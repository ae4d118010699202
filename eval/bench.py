"""Run a plan: parity first, then warm up, interleave, repeat, choose, and measure the choice again.

The only place with a clock. Baseline and drafters share one reader, one sampler, one token counter
and one prompt at a time: on each prompt every arm takes its turn, and who goes first rotates, so
that a machine that slows down slows all of them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from eval.arms import Entry, Running, entries, start
from eval.choose import pool, promising, shortlist
from eval.measurement import CHOOSE, CONFIRM, Arm, ArmFacts, Cell, Setting, Timed
from eval.parity import LARGEST_EXACT, PROBES, Audit, Greedy, audit, check, near_tie_bounds
from eval.plan import EvalPlan
from eval.report import require_writable, write
from eval.results import Findings
from eval.suites import Prompt, PromptSets, load_suite, prompt_sets, suite_from_file
from factory.artifact import Artifact
from factory.decoding.decoder import Limits, autoregressive, speculative
from factory.decoding.eager import EagerReader
from factory.decoding.rejection import Draft
from factory.decoding.sampling import Noise, Sampling
from factory.errors import ModelError
from factory.models import context_length, eos_token_ids, fingerprint, resolve_device, resolve_dtype

Progress = Callable[[int, int, str], None]


class Stopwatch:
    """Decoding's Clock. Seconds by span; waits for the device at both ends of each."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def now_s(self) -> float:
        """Seconds of a monotonic clock, all queued work done."""
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def span(self, what: str) -> Iterator[None]:
        """Adds what the body took to `seconds[what]`."""
        begun_s = self.now_s()
        yield
        self.seconds[what] += self.now_s() - begun_s


class OverlapMeter:
    """Decoding's Observer: the mean of sum_v min(p, q) over examined positions, alpha's expectation."""

    def __init__(self, eos: frozenset[int]) -> None:
        self._eos = eos
        self._sum, self._positions = 0.0, 0

    def __call__(self, draft: Draft, p: torch.Tensor, count: torch.Tensor) -> None:
        """One round: p [B, k+1, V], count [B]. Examined: the accepted and, where there is one, the rejected."""
        for row in range(p.shape[0]):
            guesses = draft.tokens[row, : min(int(count[row]), int(draft.length[row]))].tolist()
            # Behind an accepted EOS nobody looks.
            examined = next((i for i, guess in enumerate(guesses, 1) if guess in self._eos), len(guesses))
            target = p[row, :examined]  # [n, V]
            if draft.q is None:  # a point mass on the guess
                shared = target.gather(1, draft.tokens[row, :examined, None])
            else:
                shared = torch.minimum(target, draft.q[row, :examined])
            self._sum += float(shared.sum())
            self._positions += examined

    @property
    def overlap(self) -> float | None:
        """None where nothing was proposed."""
        return self._sum / self._positions if self._positions else None


class Bench:
    """The target and everything that drafts for it, on one device, in one dtype."""

    def __init__(
        self, field: Sequence[Entry], plan: EvalPlan, target: PreTrainedModel, device: str, told: Callable[[], None]
    ) -> None:
        self.plan, self.device, self.target = plan, device, target
        self.reader = EagerReader(target)
        self.running = {entry: start(entry, self.reader.vocabulary, target.dtype, device) for entry in field}
        self.drafting: dict[Arm, Running] = {arm: run for entry, run in self.running.items() for arm in entry.arms}
        self.limits = Limits(plan.max_new_tokens, eos_token_ids(target), self.context)
        self._told = told  # called after every timed output

    @property
    def context(self) -> int:
        """The shortest among target and drafters."""
        models = [self.target, *(run.model for run in self.running.values() if run.model is not None)]
        return min(context_length(model) for model in models)

    def cells(self, sets: PromptSets, arms: Sequence[Arm], temperature: float, stage: str) -> list[Cell]:
        """Warm up and time the target alone and `arms` on one suite at one temperature; the baseline comes first."""
        prompts = _prompts(sets, stage)
        cells = [Cell(arm, sets.suite.name, temperature, stage) for arm in (Arm(), *arms)]
        for cell in cells:
            self._warm_up(cell, prompts[: self.plan.warmup_prompts])
        for repeat in range(_repeats(self.plan, stage)):
            for cell in cells:
                cell.runs.append([])
            for turn, prompt in enumerate(prompts, repeat):
                first = turn % len(cells)
                for cell in (*cells[first:], *cells[:first]):
                    cell.runs[-1].append(self._timed(cell, prompt))
                    self._told()
        return cells

    def _sampling(self, temperature: float) -> Sampling:
        return Sampling(temperature=temperature, top_k=self.plan.top_k, top_p=self.plan.top_p)

    def _noise(self, prompt: Prompt) -> Noise:
        return Noise(self.plan.seed, [prompt.request], device=self.device)  # the same for every arm and repeat

    def _warm_up(self, cell: Cell, prompts: Sequence[Prompt]) -> None:
        meter = OverlapMeter(self.limits.eos)
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self.device)
        for prompt in prompts:
            given = ([prompt.ids], self._sampling(cell.temperature), self.limits, self._noise(prompt))
            if cell.arm.k is None:
                autoregressive(self.reader, *given)
            else:
                drafter = self.drafting[cell.arm].drafter
                speculative(self.reader, drafter, given[0], cell.arm.k, *given[1:], observer=meter)
        cell.overlap = meter.overlap
        cell.peak_memory_bytes = self._peak_bytes(cell.arm)

    def _peak_bytes(self, arm: Arm) -> int | None:
        """Without the weights of the drafters that wait. A CPU's peak is the whole process's: None."""
        if not self.device.startswith("cuda"):
            return None
        mine = self.drafting.get(arm)
        waiting = sum(run.weight_bytes for run in self.running.values() if run is not mine)
        return int(torch.cuda.max_memory_allocated(self.device)) - waiting

    def _timed(self, cell: Cell, prompt: Prompt) -> Timed:
        """From prompt in to last token out: both prefills, drafting, verification, acceptance, Python."""
        watch, noise, sampling = Stopwatch(self.device), self._noise(prompt), self._sampling(cell.temperature)
        begun_s = watch.now_s()
        if cell.arm.k is None:
            outputs = autoregressive(self.reader, [prompt.ids], sampling, self.limits, noise, clock=watch)
        else:
            drafter = self.drafting[cell.arm].drafter
            outputs = speculative(
                self.reader, drafter, [prompt.ids], cell.arm.k, sampling, self.limits, noise, clock=watch
            )
        total_s = watch.now_s() - begun_s
        spent = watch.seconds
        parts = (spent[what] for what in ("prefill", "draft", "verify", "accept"))
        return Timed(prompt.request, outputs[0], total_s, *parts)

    def judge(self, cells: Sequence[Cell], parity: dict[Arm, Audit], bounds: dict[int, float]) -> None:
        """Set each cell's `lossless`; greedy outputs of every repeat are compared with the baseline's first."""
        base = cells[0]
        reference = {one.request: one.generation for one in base.outputs}
        sound = parity[base.arm].passed
        for cell in cells:
            cell.lossless = sound and parity[cell.arm].passed
            if cell.temperature > 0 or cell.arm.k is None:
                continue
            written = {(one.request, *one.generation.tokens): one for repeat in cell.runs for one in repeat}
            pairs = [(reference[one.request], one.generation) for one in written.values()]
            cell.near_tie_bound = bounds.get(cell.arm.k)
            found = audit(self.reader, [a for a, _ in pairs], [b for _, b in pairs], cell.near_tie_bound)
            cell.divergences, cell.near_ties = found.divergences, found.near_ties
            cell.lossless = cell.lossless and found.passed

    def bounds(self, prompts: Sequence[Prompt], ks: Sequence[int]) -> dict[int, float]:
        """Near-tie bounds by k, measured on what the target writes in the dtype that is timed; none in float64."""
        if self.target.dtype == torch.float64:
            return {}
        written = Greedy(self.reader, self.limits).alone([prompt.ids for prompt in prompts])
        return near_tie_bounds(self.reader, written, ks)


def evaluate(
    artifacts: list[Artifact],
    plan: EvalPlan,
    *,
    target: str | None,
    out: Path,
    prompts_file: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Measure artifacts as the plan says; returns what results.json holds.

    Writes results.json, tokens.jsonl and report.html into `out`, and evals/<id>.json into every artifact.
    `target` names another copy of the target; `prompts_file` replaces the plan's suites. Raises
    ArtifactError, DataError, ModelError, UnsupportedModel.
    """
    field = entries(artifacts, plan)
    require_writable(out)
    device = resolve_device(plan.device)
    with _threads(plan.threads):
        found = _run(field, plan, target, device, prompts_file, _Counter(progress))
        results = found.results()
    write(results, [cell for _, cell in (*found.first, *found.second)], out)
    for entry in field:
        if entry.artifact is not None:
            with suppress(OSError):  # an artifact on a read-only disk is measured all the same; `out` has it all
                entry.artifact.write_eval(results)
    return results


def _run(
    field: Sequence[Entry], plan: EvalPlan, target: str | None, device: str, prompts_file: Path | None, count: _Counter
) -> Findings:
    """Parity, then time, choose, and time the choice again on fresh prompts."""
    anchor = next(entry.artifact for entry in field if entry.artifact is not None)
    model = anchor.load_target(target, resolve_dtype(plan.dtype, device), device)
    before = fingerprint(model)
    bench = Bench(field, plan, model, device, count)
    sets = _prompt_sets(anchor, plan, prompts_file, bench.context)
    arms = [arm for entry in field for arm in entry.arms]

    exact = model.num_parameters() <= LARGEST_EXACT
    exact_target = anchor.load_target(target, torch.float64, "cpu") if exact else None
    parity = _parity(field, sets, bench, exact_target, count)
    del exact_target
    bounds = bench.bounds(_mixed(sets, PROBES), sorted({arm.k for arm in arms if arm.k is not None}))

    count.phase("timing", _outputs(plan, sets, CHOOSE, len(arms)))
    first = _measured(bench, sets, arms, CHOOSE, parity, bounds)
    candidates = pool(first, plan.seed)
    second: list[tuple[Cell, Cell]] = []
    if promising(candidates):
        again = [candidate.arm for candidate in shortlist(candidates)]
        count.phase("timing again, on fresh prompts", _outputs(plan, sets, CONFIRM, len(again)))
        second = _measured(bench, sets, again, CONFIRM, parity, bounds)
    if fingerprint(model) != before:
        raise ModelError("the target's weights changed during the run, so no figure of it is true; nothing is written")
    dtype = str(model.dtype).removeprefix("torch.")
    return Findings(
        plan=plan,
        setting=Setting(device, dtype, bench.reader.name, plan.seed),
        target={
            **{key: anchor.manifest["target"].get(key) for key in ("model", "revision", "identity")},
            "context": bench.context,
            "weights_unchanged": True,
        },
        facts={arm: entry.facts(dtype) for entry in field for arm in entry.arms} | {Arm(): _target_facts(model)},
        sets=sets,
        parity=parity,
        exact=exact,
        first=first,
        second=second,
        notes=[run.note for run in bench.running.values() if run.note],
    )


class _Counter:
    """Counts what is written, phase by phase, for a progress bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._what, self._done, self._total = progress, "", 0, 0

    def phase(self, what: str, total: int) -> None:
        """A new phase of `total` pieces."""
        self._what, self._done, self._total = what, 0, total
        self._progress(0, total, what)

    def __call__(self) -> None:
        self._done += 1
        self._progress(self._done, self._total, self._what)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _prompt_sets(anchor: Artifact, plan: EvalPlan, prompts_file: Path | None, context: int) -> list[PromptSets]:
    tokenizer = anchor.load_tokenizer()
    suites = [suite_from_file(prompts_file)] if prompts_file else [load_suite(name) for name in plan.suites]
    room = context - plan.max_new_tokens - 1
    encode = lambda text: tokenizer(text)["input_ids"]  # noqa: E731 - a name for one expression
    return [prompt_sets(suite, encode, room, plan.prompts, plan.confirm_prompts) for suite in suites]


def _prompts(sets: PromptSets, stage: str) -> list[Prompt]:
    return sets.choose if stage == CHOOSE else sets.confirm


def _repeats(plan: EvalPlan, stage: str) -> int:
    return plan.repeats if stage == CHOOSE else plan.confirm_repeats


def _mixed(sets: Sequence[PromptSets], count: int) -> list[Prompt]:
    """The first prompts to choose by, one of each suite in turn."""
    turns = zip_longest(*(one.choose for one in sets))
    return [prompt for turn in turns for prompt in turn if prompt is not None][:count]


def _outputs(plan: EvalPlan, sets: Sequence[PromptSets], stage: str, arms: int) -> int:
    prompts = sum(len(_prompts(one, stage)) for one in sets)
    return prompts * _repeats(plan, stage) * len(plan.temperatures) * (arms + 1)


def _parity(
    field: Sequence[Entry],
    sets: Sequence[PromptSets],
    bench: Bench,
    exact_target: PreTrainedModel | None,
    count: _Counter,
) -> dict[Arm, Audit]:
    """With the float64 target on the CPU where there is one, else as it is timed."""
    plan, vocabulary = bench.plan, bench.reader.vocabulary
    prompts = [prompt.ids for prompt in _mixed(sets, plan.parity_prompts)]
    limits = replace(bench.limits, max_new_tokens=min(plan.parity_new_tokens, plan.max_new_tokens))
    count.phase("parity with the target", 1 + sum(len(entry.ks) for entry in field))
    if exact_target is None:
        return check(bench.target, lambda entry: bench.running[entry].drafter, field, prompts, limits, count)
    exact = lambda entry: start(entry, vocabulary, torch.float64, "cpu").drafter  # noqa: E731 - a name for it
    return check(exact_target, exact, field, prompts, limits, count)


def _measured(
    bench: Bench,
    sets: Sequence[PromptSets],
    arms: Sequence[Arm],
    stage: str,
    parity: dict[Arm, Audit],
    bounds: dict[int, float],
) -> list[tuple[Cell, Cell]]:
    """(baseline cell, cell) pairs, the baselines' own among them, timed and judged."""
    pairs = []
    for one in sets:
        for temperature in bench.plan.temperatures:
            cells = bench.cells(one, arms, temperature, stage)
            bench.judge(cells, parity, bounds)
            pairs += [(cells[0], cell) for cell in cells]
    return pairs


def _target_facts(model: PreTrainedModel) -> ArmFacts:
    size = sum(path.stat().st_size for path in Path(model.name_or_path).glob("*.safetensors"))
    return ArmFacts(int(model.num_parameters()), size or None, None)
