"""What results.json holds, made of what a run found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from eval.measurement import CHOOSE, CONFIRM, Arm, ArmFacts, Cell
from eval.parity import Audit
from eval.plan import EvalPlan
from eval.suites import PromptSets
from eval.verdict.choose import Candidate, pool, verdict
from eval.verdict.figures import Setting, measure
from eval.verdict.roofline import roofline
from eval.verdict.trainings import Training
from factory.forecasting.forecast import Costs, costs_in_time, served
from factory.forecasting.profile import DeviceProfile, load
from factory.provenance import git_sha, hardware, versions

# 2: rows of several batches stand beside each other, and k may be "auto".
SCHEMA_VERSION = 2

Pairs = Sequence[tuple[Cell, Cell]]  # (baseline cell, cell), the baselines' own among them


@dataclass(frozen=True)
class Findings:
    """All that a run found. `exact`: parity was checked in float64 on the CPU."""

    plan: EvalPlan
    setting: Setting
    target: dict[str, Any]
    facts: dict[Arm, ArmFacts]
    sets: Sequence[PromptSets]
    parity: dict[Arm, Audit]
    exact: bool
    placement: dict[str, Any]  # processes, and the devices of target and drafters
    first: Pairs
    second: Pairs
    notes: Sequence[str] = ()  # what a reader should know of the drafters' weight formats
    trainings: Sequence[Training] = ()  # of the drafters that were trained

    def results(self) -> dict[str, Any]:
        """results.json. What does not apply is None, never missing."""
        decisive = [pair for pair in self.first if pair[0].batch == self.plan.batches[0]]
        chosen, confirmed = pool(decisive, self.setting.seed), pool(self.second, self.setting.seed)
        pooled = [self._candidate(one, CHOOSE) for one in chosen] + [self._candidate(one, CONFIRM) for one in confirmed]
        pairs = (*self.first, *self.second)
        return {
            "schema_version": SCHEMA_VERSION,
            "hardware": hardware(self.setting.device),
            "placement": self.placement,
            "verdict": verdict(chosen, confirmed, self.plan.temperatures),
            "candidates": pooled,
            "rows": [self._row(base, cell) for base, cell in pairs],
            "profile": {**self.profile.record(), "words": self.profile.words},
            "roofline": roofline([cell for _, cell in self.first], self.facts, self.profile, self.setting.dtype),
            "target": {
                **self.target,
                "parameters": self.facts[Arm()].parameters,
                "bytes_on_disk": self.facts[Arm()].bytes_on_disk,
                "dtype": self.setting.dtype,
                "reader": self.setting.reader,
            },
            "parity": [self._parity(arm, found) for arm, found in self.parity.items()],
            "suites": [one.facts() for one in self.sets],
            "notes": list(self.notes),
            "trainings": list(self.trainings),
            "skipped_prompts": sum(one.skipped for one in self.sets),
            "plan": self.plan.model_dump(mode="json"),
            "versions": versions(),
            "git": git_sha(),
        }

    @cached_property
    def profile(self) -> DeviceProfile:
        """Of the device that was measured on: what the forecasts beside the measurements are made from."""
        return load("cuda" if self.setting.device.startswith("cuda") else "cpu")

    def _costs(self, arm: Arm) -> Costs | None:
        """The forecast of an arm, of the target's own steps where no model drafts; None where no shapes are known."""
        targets = (facts.target_shape for facts in self.facts.values())
        target = next((shape for shape in targets if shape is not None), None)
        if target is None:
            return None
        dtype, drafter = self.setting.dtype, self.facts[arm].drafter_shape
        return costs_in_time(served(drafter or target, dtype), served(target, dtype), self.profile, dtype)

    def _row(self, base: Cell, cell: Cell) -> dict[str, Any]:
        costs = self._costs(cell.arm) if cell.batch == 1 else None  # forecasts know no larger batch
        return measure(cell, base, self.facts[cell.arm], self.setting, costs).row()

    def _candidate(self, one: Candidate, stage: str) -> dict[str, Any]:
        facts, costs, k = self.facts[one.arm], self._costs(one.arm), one.arm.fixed_k
        forecast = None
        if costs and facts.drafter_shape and one.alpha is not None and k is not None and one.batch == 1:
            forecast = costs.speedup(one.alpha, k)
        return {
            **one.facts(),
            "prompt_set": stage,
            "matches_target": one.lossless,
            "prompts": one.prompts,
            "repeats": one.repeats,
            "batch": one.batch,
            "mean_k": one.mean_k,
            "alpha": one.alpha,
            "round_tokens": one.round_tokens,
            "round_cost": one.round_cost,
            "draft_cost": one.draft_cost,
            "forecast_speedup": forecast,
            "parameters": facts.parameters,
            "bytes_on_disk": facts.bytes_on_disk,
            "cost_ratio": facts.cost_ratio,
        }

    def _parity(self, arm: Arm, found: Audit) -> dict[str, Any]:
        dtype, device = ("float64", "cpu") if self.exact else (self.setting.dtype, self.setting.device)
        return {**asdict(arm), "dtype": dtype, "device": device, "batches": list(self.plan.batches), **found.facts()}
