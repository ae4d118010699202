"""A target and what it says alone, in float64 and as served: what every drafter's output is held against.

It finds; what a finding means is `certificate`'s to say. It stores nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from eval.lossless.certificate import LEAST_PROMPTS, audit_row
from eval.lossless.law import Fit, Law, ManyTexts, Text, exact_law, fit
from eval.lossless.prompt_pool import SUITE, prompt_pool, target_writer
from eval.measurement import Arm
from eval.parity import LARGEST_EXACT, Audit, Reference
from eval.plan import EvalPlan
from eval.suites import Suite
from eval.timing.arms import Entry, Running, opened, require_vocabulary, start
from eval.timing.bench import PROCESSORS
from eval.timing.placing import placement_of
from factory.decoding.decoder import Limits, speculative
from factory.decoding.pace import EVEN_COSTS, AutoPace, Pace
from factory.decoding.reader import Reader
from factory.decoding.readers import ReaderKind
from factory.decoding.sampling import Noise, Sampling
from factory.errors import ArtifactError, DataError, ModelError
from factory.models.loading import eos_token_ids, fingerprint, resolve_device, resolve_dtype
from factory.processes import ALONE
from factory.progress import Progress

# How texts are sampled for the test of their law, beside the plan's own way where it has processors.
WAYS = (Sampling(temperature=1.0), Sampling(temperature=0.8, top_k=20, top_p=0.9))

Facts = dict[str, Any]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Scale:
    """How much is looked at."""

    prompts: int = LEAST_PROMPTS
    new_tokens: int = 24
    batch: int = 32  # prompts at a time
    law_prompts: int = 3
    law_prompt_tokens: int = 12
    draws: int = 1000  # texts of each sampling test


@dataclass(frozen=True)
class Sampled:
    """A prompt and a way of sampling: the exact law of what follows, and what plain decoding drew."""

    number: int
    prompt: list[int]
    sampling: Sampling
    law: Law
    plain: list[Text]


class Side:
    """The target in one dtype, read by one reader; its greedy text is written when first asked for."""

    def __init__(
        self,
        model: PreTrainedModel,
        reader: Reader,
        drafter_kind: ReaderKind,
        device: str,
        prompts: list[list[int]],
        limits: Limits,
        ks: list[int],
        batch: int,
        greedy: Sampling,
    ) -> None:
        self.reader = reader
        self._model, self._drafter_kind, self._device = model, drafter_kind, device
        self._given = (prompts, limits, ks, batch, greedy)

    @cached_property
    def reference(self) -> Reference:
        """What the target writes alone."""
        return Reference(self._model, self.reader, *self._given)

    @cached_property
    def itself(self) -> Audit:
        """That against transformers."""
        return self.reference.itself()

    def drafting(self, entry: Entry) -> Running:
        """An entry's drafter in this dtype, on this device."""
        reader = self.reader
        return start(entry, reader.vocabulary, self._model.dtype, self._device, self._drafter_kind, reader.device)


class Witness:
    """The target of some entries, loaded as the plan says, and asked by one drafter after another.

    Raises DataError where the context leaves no room for a prompt, UnsupportedModel where a drafter
    cannot draft for it, ModelError, ArtifactError.
    """

    def __init__(
        self,
        field: Sequence[Entry],
        plan: EvalPlan,
        suites: Sequence[Suite],
        target: str | None,
        progress: Progress,
        scale: Scale,
    ) -> None:
        self.plan, self.suites = plan, suites
        self._scale, self._progress = scale, progress
        arms = [arm for entry in field for arm in entry.arms]
        self._ks = sorted({arm.most for arm in arms})
        self._turns = list(dict.fromkeys(arm.k for arm in arms))
        anchor = next((entry.artifact for entry in field if entry.artifact is not None), None)
        if anchor is None:
            raise ArtifactError("no artifact to certify: `factory build RECIPE` makes one, `factory ls` lists them")
        device = resolve_device(plan.device)
        dtype, placement = resolve_dtype(plan.dtype, device), placement_of(plan, ALONE)
        self._model = anchor.load_target(target, dtype, device, placement, progress)
        require_vocabulary(field, self._model)
        self._before = fingerprint(self._model)
        self._eos = eos_token_ids(self._model)
        progress(0, 3, "opening, the target")
        reader = opened(self._model, plan.reader)
        self._law_tokens = min(scale.law_prompt_tokens, reader.context - max(self._ks) - 3)
        room = reader.context - scale.new_tokens - 1
        if min(room, self._law_tokens) < 1:
            raise DataError(
                f"{anchor.manifest['target']['model']}: its context of {reader.context} tokens leaves no room for a "
                f"prompt beside {scale.new_tokens} new tokens and k = {max(self._ks)}: lower k in the plan"
            )
        tokenizer = anchor.load_tokenizer()
        writer = target_writer(self._model, reader, self._eos, plan.seed)
        rows = int(self._model.get_input_embeddings().weight.shape[0])

        def encode(text: str) -> list[int]:
            ids: list[int] = tokenizer(text)["input_ids"]
            return ids if max(ids, default=0) < rows else []  # some tokenizers know tokens that their model does not

        self._pool = prompt_pool(suites, encode, room, scale.prompts, writer)
        prompts, limits = self._pool.dealt(scale.batch), Limits(scale.new_tokens, self._eos, reader.context)
        given = (prompts, limits, self._ks, scale.batch, sampling_of(plan, 0.0))
        drafts_on = str(reader.device) if plan.drafter_device == "auto" else plan.drafter_device
        self._served = Side(self._model, reader, plan.drafter_reader, drafts_on, *given)
        progress(1, 3, "opening, the drafters")
        for entry in field:
            self._try_out(entry)
        progress(2, 3, "opening, the target in float64")
        self._exact: PreTrainedModel | None = None
        self._exact_sides: list[Side] = []
        if self._model.num_parameters() <= LARGEST_EXACT:
            self._exact = anchor.load_target(target, torch.float64, "cpu")
            eager, other = opened(self._exact, "eager"), opened(self._exact, plan.reader)
            self._exact_sides = [Side(self._exact, eager, "eager", "cpu", *given)]
            if other.name != eager.name:
                self._exact_sides.append(Side(self._exact, other, plan.drafter_reader, "cpu", *given))
        progress(3, 3, "opening, target and drafters")

    @property
    def parameters(self) -> int:
        """Of the target."""
        return int(self._model.num_parameters())

    def prompt_facts(self) -> Facts:
        """The prompts of greedy parity, and how they are written."""
        return {**self._pool.facts(), "new_tokens": self._scale.new_tokens, "batch": self._scale.batch}

    def in_float64(self, entry: Entry) -> Facts:
        """Greedy parity by each reader; nothing is excused. Not run for a target too large, and then it says why."""
        if self._exact is None:
            limit = f"{LARGEST_EXACT // 1_000_000} M"
            why = f"the target has {self.parameters:,} parameters, and more than {limit} take too long in float64"
            return {"ran": False, "why_not": why, "device": None, "rows": []}
        rows = self._compared(entry, self._exact_sides, "float64 parity")
        return {"ran": True, "why_not": None, "device": "cpu", "rows": rows}

    def as_served(self, entry: Entry) -> Facts:
        """Greedy outputs in the dtype, on the device and by the readers that serve; near-ties are excused."""
        rows = self._compared(entry, [self._served], f"near-ties in {_name(self._model.dtype)}")
        return {
            "dtype": _name(self._model.dtype),
            "device": str(self._served.reader.device),
            "reader": self._served.reader.name,
            "why_reader": self._served.reader.why,
            "rows": rows,
        }

    def sampling_facts(self) -> Facts:
        """How texts are sampled, and what the exact law is computed in."""
        return {
            "draws": self._scale.draws,
            "dtype": _name(self._model.dtype),
            "reader": self._served.reader.name,
            "reference": _name(self._judge.dtype),
        }

    def sampled(self, entry: Entry) -> list[tuple[Facts, Fit, Fit]]:
        """For every prompt, way of sampling and k: what was drawn, how it fits the law, and how plain decoding does."""
        drafter = self._served.drafting(entry).drafter
        texts, found = self._texts, []
        jobs = [(one, arm) for one in self._cases for arm in entry.arms]
        for one, arm in self._shown(jobs, f"the law of sampled text, {entry.arms[0].artifact}"):
            requests = self._requests(one.number, self._turns.index(arm.k))
            made = texts.drafted(drafter, chosen(arm), one.prompt, one.sampling, requests)
            given = {
                "prompt_ids": one.prompt,
                **asdict(one.sampling),
                "k": arm.k,
                "tokens": arm.most + 2,
                "proposed": sum(sum(text.proposed) for text in made),
                "accepted": sum(sum(text.accepted) for text in made),
            }
            speculated = fit(one.law, arm.most + 2, [tuple(text.tokens) for text in made])
            found.append((given, speculated, fit(one.law, arm.most + 2, one.plain)))
        return found

    def require_unchanged(self) -> None:
        """Raises ModelError where the target's weights are no longer those that were loaded."""
        if fingerprint(self._model) != self._before:
            raise ModelError("the target's weights changed during the run, so nothing is certified")

    def _compared(self, entry: Entry, sides: Sequence[Side], what: str) -> list[Facts]:
        rows: list[Facts] = []
        drafting: dict[Side, Running] = {}
        jobs = [(side, arm) for side in sides for arm in (None, *entry.arms)]
        for side, arm in self._shown(jobs, f"{what}, {entry.arms[0].artifact}"):
            if arm is None:
                rows.append(audit_row(side.itself, None, side.reader.name, None))
                continue
            running = drafting.setdefault(side, drafting.get(side) or side.drafting(entry))
            found = side.reference.against(running.drafter, chosen(arm))
            rows.append(audit_row(found, arm.k, side.reader.name, running.reader.name if running.reader else None))
        return rows

    @property
    def _judge(self) -> PreTrainedModel:
        """Whose exact law counts. In a dtype coarser than float32 the served model's own: it is another model's."""
        fine = self._model.dtype in (torch.float32, torch.float64)
        return self._exact if self._exact is not None and fine else self._model

    @property
    def _texts(self) -> ManyTexts:
        return ManyTexts(self._served.reader, self._eos, self.plan.seed)

    @cached_property
    def _cases(self) -> list[Sampled]:
        depth, own = max(self._ks) + 2, sampling_of(self.plan, max(self.plan.temperatures))
        ways = list(dict.fromkeys([*WAYS, own if not own.greedy else replace(own, temperature=1.0)]))
        jobs = [(prompt, way) for prompt in self._law_prompts() for way in ways]
        cases = []
        for number, (prompt, way) in enumerate(self._shown(jobs, "the exact law")):
            law = exact_law(
                self._judge,
                prompt,
                way,
                depth=depth,
                draws=self._scale.draws,
                eos=self._eos,
                rounding=self._model.dtype,
            )
            plain = self._texts.alone(prompt, way, depth, self._requests(number, len(self._turns)))
            cases.append(Sampled(number, prompt, way, law, plain))
        return cases

    def _law_prompts(self) -> list[list[int]]:
        """The beginnings of some of the suites' prompts, evenly spaced; of any where the suites gave none."""
        own = self._pool.prompts[: self._pool.sources[SUITE]] or self._pool.prompts
        distinct = list(dict.fromkeys(tuple(prompt[: self._law_tokens]) for prompt in own))
        step = max(1, len(distinct) // self._scale.law_prompts)
        return [list(prompt) for prompt in distinct[::step][: self._scale.law_prompts]]

    def _requests(self, case: int, turn: int) -> range:
        """Requests of their own for each k of each case, and for plain decoding: no two tests share noise."""
        first = (case * (len(self._turns) + 1) + turn) * self._scale.draws
        return range(first, first + self._scale.draws)

    def _try_out(self, entry: Entry) -> None:
        """One short text with every drafter: what cannot draft for this target says so now."""
        drafter, reader = self._served.drafting(entry).drafter, self._served.reader
        limits = Limits(3, self._eos, reader.context)
        noise = Noise(0, [0], device=reader.device)
        speculative(reader, drafter, self._pool.prompts[:1], chosen(entry.arms[0]), Sampling(), limits, noise)

    def _shown(self, jobs: Sequence[Item], what: str) -> Iterator[Item]:
        for done, job in enumerate(jobs):
            self._progress(done, len(jobs), what)
            yield job
        self._progress(len(jobs), len(jobs), what)


def sampling_of(plan: EvalPlan, temperature: float) -> Sampling:
    """The plan's processors at that temperature."""
    return Sampling(temperature=temperature, **{name: getattr(plan, name) for name in PROCESSORS})


def chosen(arm: Arm) -> int | Pace:
    """Its k; where that is chosen each round, a pace whose costs make it vary: no clock decides here."""
    return arm.fixed_k or AutoPace(EVEN_COSTS)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
