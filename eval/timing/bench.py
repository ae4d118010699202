"""Everything that drafts for a target, measured: warmed up, interleaved, repeated.

The only place with a clock. Baseline and drafters share one reader, one sampler, one token counter
and one batch of prompts at a time: on each batch every arm takes its turn, and who goes first
rotates, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields

import torch
from transformers import PreTrainedModel

from eval.measurement import AUTO, Arm, Block, Cell, Timed, merged
from eval.parity import PROBES, Audit, Greedy, Reference, audit, in_parts, near_tie_bounds
from eval.plan import EvalPlan
from eval.suites import Prompt
from eval.timing.arms import Entry, Running, opened, require_vocabulary, start
from eval.timing.memory import Load, memory_errors
from factory.decoding.costs import AT_ONCE, measure_costs
from factory.decoding.decoder import Generation, Limits, autoregressive, speculative
from factory.decoding.leading import LeadingReader
from factory.decoding.pace import EVEN_COSTS, AutoPace, Pace
from factory.decoding.rejection import Draft
from factory.decoding.sampling import Noise, Sampling
from factory.models.loading import eos_token_ids, fingerprint
from factory.models.placement import cuda_devices, layer_devices
from factory.processes import ALONE, Processes
from factory.progress import Progress, silent

# What a plan and a Sampling call the same.
PROCESSORS = tuple(known.name for known in fields(Sampling) if known.name != "temperature")

Bounds = dict[tuple[int, int], float]  # (batch, k; 0 is the target alone) -> near-tie bound


class Stopwatch:
    """Decoding's Clock: seconds by span.

    On a GPU a span is measured by the device itself, between events that are queued with its work: waiting at both
    ends of each span would take from the host what it gains by running ahead. What other devices do in a span comes
    back to this one before its end, so this one waits for them.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._passed_s: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def now_s(self) -> float:
        """Seconds of a monotonic clock, all queued work done."""
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def span(self, what: str) -> Iterator[None]:
        """Adds what the body took to `seconds[what]`."""
        if self._device.startswith("cuda"):
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            stream = torch.cuda.current_stream(self._device)  # of that device, which need not be the current one
            begun.record(stream)
            yield
            ended.record(stream)
            self._events.append((what, begun, ended))
        else:
            begun_s = time.perf_counter()
            yield
            self._passed_s[what] += time.perf_counter() - begun_s

    @property
    def seconds(self) -> dict[str, float]:
        """By span; waits for the device."""
        if self._events:
            torch.cuda.synchronize(self._device)
            for what, begun, ended in self._events:
                self._passed_s[what] += 1e-3 * begun.elapsed_time(ended)
            self._events.clear()
        return self._passed_s


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
    """The target and everything that drafts for it, in one dtype; of several launched processes each has its own.

    The first then decides what is done, and the others do as `follow` is told: of a block's batches each times every
    world-th. Where the processes hold one target together, the first has the only bench.
    """

    def __init__(
        self,
        field: Sequence[Entry],
        plan: EvalPlan,
        target: PreTrainedModel,
        context: int,
        told: Callable[[], None],
        together: Processes = ALONE,
        progress: Progress = silent,
    ) -> None:
        """`context`: the shortest among target and drafters. `told` is called after every timed output.

        Raises ModelError, UnsupportedModel.
        """
        require_vocabulary(field, target)
        self.plan, self.target, self.together = plan, target, together
        self.weights = fingerprint(target)  # as they were when it was loaded
        progress(0, 1 + len(field), "opening, the target")
        self.reader = opened(target, plan.reader)
        drafts_on = str(self.reader.device) if plan.drafter_device == "auto" else plan.drafter_device
        if plan.tensor_parallel:
            self.reader = LeadingReader(self.reader, target, together.told)
        self._sharing = ALONE if plan.tensor_parallel else together
        vocabulary, kind = self.reader.vocabulary, plan.drafter_reader
        self.running = {}
        for number, entry in enumerate(field, 1):
            progress(number, 1 + len(field), f"opening, {entry.arms[0].artifact or entry.arms[0].drafter}")
            self.running[entry] = start(entry, vocabulary, target.dtype, drafts_on, kind, self.reader.device)
        progress(1 + len(field), 1 + len(field), "opening, target and drafters")
        self.drafting: dict[Arm, Running] = {arm: run for entry, run in self.running.items() for arm in entry.arms}
        readers = [self.reader, *(run.reader for run in self.running.values() if run.reader is not None)]
        self.devices = tuple(map(str, dict.fromkeys([*layer_devices(target), *(reader.device for reader in readers)])))
        self.limits = Limits(plan.max_new_tokens, eos_token_ids(target), context)
        self._told = told
        self._paces: dict[Arm, AutoPace] = {}  # of the cells that are being measured

    def cells(self, block: Block, prompts: Sequence[Prompt], arms: Sequence[Arm], repeats: int) -> list[Cell]:
        """Warm up and time the target alone and `arms` on these prompts; the baseline comes first."""
        self._sharing.told((block, prompts, arms, repeats))
        shares = self._sharing.gathered(self._cells(block, prompts, arms, repeats))
        cells = merged(shares)
        for _ in range(
            sum(len(one.requests) for cells_there in shares[1:] for cell in cells_there for one in cell.timed)
        ):
            self._told()
        return cells

    def follow(self) -> None:
        """Time this process's share of every block that the first one's `cells` tells of, until it closes its bench."""
        while (order := self.together.told(None)) is not None:
            block, prompts, arms, _ = order
            longest, most = max(len(prompt.ids) for prompt in prompts), max((arm.most for arm in arms), default=0)
            with memory_errors(Load(block.batch, most, longest, self.plan.max_new_tokens)):
                share = self._cells(*order)
            self.together.gathered(share)

    def close(self) -> None:
        """Nothing more is to be done: the other processes go on."""
        self.together.told(None)

    def _cells(self, block: Block, prompts: Sequence[Prompt], arms: Sequence[Arm], repeats: int) -> list[Cell]:
        """This process's share of a block: all arms, on every world-th batch."""
        batches = full_batches(prompts, block.batch)
        warm = batches[: -(-self.plan.warmup_prompts // block.batch)]
        cells = [Cell(arm, block.suite, block.temperature, block.stage, batch=block.batch) for arm in (Arm(), *arms)]
        self._prepare(block, prompts, arms)
        self._paces = {cell.arm: self._pace(cell, batches[0]) for cell in cells if cell.arm.k == AUTO}
        for cell in cells:
            self._warm_up(cell, warm)
        for repeat in range(repeats):
            for cell in cells:
                cell.runs.append([])
            for turn, batch in enumerate(batches):
                if turn % self._sharing.world != self._sharing.rank:
                    continue
                first = (turn + repeat) % len(cells)
                for cell in (*cells[first:], *cells[:first]):
                    cell.runs[-1].append(self._timed(cell, batch))
                    for _ in batch:
                        self._told()
        return cells

    def sampling(self, temperature: float) -> Sampling:
        """The plan's at that temperature."""
        return Sampling(temperature=temperature, **{name: getattr(self.plan, name) for name in PROCESSORS})

    def _noise(self, batch: Sequence[Prompt]) -> Noise:
        """The same for every arm, repeat and size of batch."""
        return Noise(self.plan.seed, [prompt.request for prompt in batch], device=self.reader.device)

    def _prepare(self, block: Block, prompts: Sequence[Prompt], arms: Sequence[Arm]) -> None:
        """What passes are compiled or recorded for, all that these prompts need: not in a timed run."""
        most = max((arm.most for arm in arms), default=0)
        longest = max(len(prompt.ids) for prompt in prompts)
        if any(arm.k == AUTO for arm in arms):  # its costs are measured on longer texts
            longest += AT_ONCE
        tokens = min(longest + self.plan.max_new_tokens + most + 1, self.reader.context)
        widths = {1 + k for arm in arms for k in _ks(arm)}
        self.reader.prepare(block.batch, sorted({1, *widths}), tokens)
        for arm in arms:
            self.drafting[arm].drafter.prepare(block.batch, _ks(arm), tokens, self.sampling(block.temperature))

    def _pace(self, cell: Cell, batch: Sequence[Prompt]) -> AutoPace:
        """A pace for that cell, its costs measured here; it learns from prompt to prompt, as a server's would."""
        drafter, watch = self.drafting[cell.arm].drafter, Stopwatch(str(self.reader.device))
        prompts = [prompt.ids for prompt in batch]
        return AutoPace(measure_costs(self.reader, drafter, prompts, self.sampling(cell.temperature), watch.now_s))

    def _k(self, arm: Arm) -> int | Pace:
        return arm.fixed_k or self._paces[arm]

    def _warm_up(self, cell: Cell, batches: Sequence[Sequence[Prompt]]) -> None:
        meter = OverlapMeter(self.limits.eos)
        for device in cuda_devices(*self.devices):
            torch.cuda.reset_peak_memory_stats(device)
        for batch in batches:
            given = (self.sampling(cell.temperature), self.limits, self._noise(batch))
            prompts = [prompt.ids for prompt in batch]
            if cell.arm.drafter is None:
                autoregressive(self.reader, prompts, *given)
            else:
                drafter = self.drafting[cell.arm].drafter
                speculative(self.reader, drafter, prompts, self._k(cell.arm), *given, observer=meter)
        cell.overlap = meter.overlap
        cell.peak_memory_bytes = self._peak_bytes(cell.arm)

    def _peak_bytes(self, arm: Arm) -> int | None:
        """Of all devices, without the weights of the drafters that wait. A CPU's peak is the whole process's: None."""
        devices, mine = cuda_devices(*self.devices), self.drafting.get(arm)
        if not devices:
            return None
        there = (run for run in self.running.values() if run.model is not None and run.model.device.type == "cuda")
        waiting = sum(run.weight_bytes for run in there if run is not mine)
        return sum(int(torch.cuda.max_memory_allocated(device)) for device in devices) - waiting

    def _timed(self, cell: Cell, batch: Sequence[Prompt]) -> Timed:
        """From prompts in to last token out: both prefills, drafting, verification, acceptance, Python."""
        watch, noise, sampling = Stopwatch(str(self.reader.device)), self._noise(batch), self.sampling(cell.temperature)
        prompts = [prompt.ids for prompt in batch]
        begun_s = watch.now_s()
        if cell.arm.drafter is None:
            outputs = autoregressive(self.reader, prompts, sampling, self.limits, noise, clock=watch)
        else:
            drafter, k = self.drafting[cell.arm].drafter, self._k(cell.arm)
            outputs = speculative(self.reader, drafter, prompts, k, sampling, self.limits, noise, clock=watch)
        total_s = watch.now_s() - begun_s
        parts = (watch.seconds[what] for what in ("prefill", "draft", "verify", "accept"))
        return Timed(tuple(prompt.request for prompt in batch), outputs, total_s, *parts)

    def alone(self, prompts: Sequence[Prompt]) -> dict[int, Generation]:
        """What the target writes greedily, untimed, one prompt at a time; by request."""
        written = Greedy(self.reader, self.limits, sampling=self.sampling(0.0)).alone(
            [prompt.ids for prompt in prompts]
        )
        return {prompt.request: output for prompt, output in zip(prompts, written, strict=True)}

    def judge(
        self, cells: Sequence[Cell], reference: dict[int, Generation], parity: dict[Arm, Audit], bounds: Bounds
    ) -> None:
        """Set each cell's `lossless`. The baseline comes first.

        Greedy outputs of every repeat are compared with `reference`: what the target alone wrote one prompt at a time.
        """
        sound = parity[cells[0].arm].passed
        for cell in cells:
            cell.lossless = sound and parity[cell.arm].passed
            if cell.temperature > 0 or (cell.arm.drafter is None and cell.batch == 1):
                continue
            written = {
                (request, *output.tokens): (reference[request], output)
                for one in cell.timed
                for request, output in zip(one.requests, one.generations, strict=True)
            }
            cell.near_tie_bound = _bound(cell, bounds)
            expected, found = zip(*written.values(), strict=True)
            greedy = self.sampling(0.0)
            compared = audit(self.reader, expected, found, cell.near_tie_bound, greedy, self.limits.eos)
            cell.divergences, cell.near_ties = compared.divergences, compared.near_ties
            cell.lossless = cell.lossless and compared.passed

    def parity(
        self,
        exact: PreTrainedModel | None,
        asked: Sequence[tuple[int, Sequence[list[int]]]],
        limits: Limits,
        told: Callable[[], None],
    ) -> dict[Arm, Audit]:
        """Greedy parity of the target alone and of every arm, on each (batch, prompts) that is asked for.

        `exact`: the target in float64 on the CPU, and drafters are read likewise; None: both as they are timed. `told`
        is called after each audit.
        """
        target, reader = self.target, self.reader
        if exact is not None:
            target, reader = exact, opened(exact, self.plan.reader)
        ks = [arm.most for arm in self.drafting]
        greedy = self.sampling(0.0)
        references = [Reference(target, reader, prompts, limits, ks, batch, greedy) for batch, prompts in asked]

        found: dict[Arm, list[Audit]] = {Arm(): []}
        for reference in references:
            found[Arm()].append(reference.itself())
            told()
        for entry, running in self.running.items():
            drafter = running.drafter
            if exact is not None:
                drafter = start(entry, reader.vocabulary, torch.float64, "cpu", self.plan.drafter_reader).drafter
            for arm in entry.arms:
                found[arm] = []
                for reference in references:
                    found[arm].append(reference.against(drafter, arm.fixed_k or AutoPace(EVEN_COSTS)))
                    told()
        return {arm: Audit.of(audits) for arm, audits in found.items()}

    def bounds(self, prompts: Sequence[Prompt], ks: Sequence[int]) -> Bounds:
        """Near-tie bounds, measured on what the target writes in the dtype that is timed; none in float64."""
        if self.target.dtype == torch.float64:
            return {}
        written = list(self.alone(prompts[: max(PROBES, *self.plan.batches)]).values())
        found = {}
        for batch in self.plan.batches:
            bounds = near_tie_bounds(self.reader, written, ks if batch == 1 else [0, *ks], batch)
            found.update({(batch, k): bound for k, bound in bounds.items()})
        return found


def _ks(arm: Arm) -> Sequence[int]:
    """Every k that it may ask for."""
    return [arm.fixed_k] if arm.fixed_k else range(1, arm.most + 1)


def _bound(cell: Cell, bounds: Bounds) -> float | None:
    """Of its k; where that is chosen each round, the largest of those that it may be. None in float64."""
    known = [
        bound
        for (batch, k), bound in bounds.items()
        if batch == cell.batch and (k == cell.arm.most or (cell.arm.k == AUTO and k < cell.arm.most))
    ]
    return max(known, default=None)


def full_batches(prompts: Sequence[Prompt], batch: int) -> list[Sequence[Prompt]]:
    """Prompts in their order, `batch` at a time. Those that fill no batch are left out: all of a cell are alike."""
    return [part for part in in_parts(prompts, batch) if len(part) == batch]
