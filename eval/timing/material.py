"""What a plan asks to have written: which prompts in which stage, how many at a time, how often."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from eval.measurement import CHOOSE, CONFIRM
from eval.plan import EvalPlan
from eval.suites import Prompt, PromptSets, load_suite, prompt_sets, suite_from_file
from eval.timing.bench import full_batches
from factory.artifact import Artifact
from factory.errors import DataError


def prompt_sets_of(anchor: Artifact, plan: EvalPlan, prompts_file: Path | None, context: int) -> list[PromptSets]:
    """The plan's suites, or the file instead of them, in the tokens of the artifact's target.

    Raises DataError for prompts that cannot be read, do not fit into the context, or do not fill a batch.
    """
    tokenizer = anchor.load_tokenizer()
    suites = [suite_from_file(prompts_file)] if prompts_file else [load_suite(name) for name in plan.suites]
    room = context - plan.max_new_tokens - 1
    if room < 1:
        raise DataError(
            f"max_new_tokens {plan.max_new_tokens} leaves no room for a prompt in a context of {context}: "
            "lower it in the plan"
        )
    encode = lambda text: tokenizer(text)["input_ids"]  # noqa: E731 - a name for one expression
    sets = [prompt_sets(suite, encode, room, plan.prompts, plan.confirm_prompts) for suite in suites]
    for one in sets:
        for stage, batches in ((CHOOSE, plan.batches), (CONFIRM, plan.batches[:1])):
            count = len(prompts_of(one, stage))
            if max(batches) > count:
                purpose = "choose by" if stage == CHOOSE else "confirm with"
                raise DataError(
                    f"suite {one.suite.name}: {count} prompts to {purpose} do not fill a batch of {max(batches)}; "
                    "give more prompts, raise the plan's prompts and confirm_prompts, or lower batches"
                )
    return sets


def prompts_of(sets: PromptSets, stage: str) -> list[Prompt]:
    """Those of a stage."""
    return sets.choose if stage == CHOOSE else sets.confirm


def repeats_of(plan: EvalPlan, stage: str) -> int:
    """How often a stage times each prompt."""
    return plan.repeats if stage == CHOOSE else plan.confirm_repeats


def mixed(sets: Sequence[PromptSets], count: int) -> list[Prompt]:
    """The first prompts to choose by, one of each suite in turn."""
    turns = zip_longest(*(one.choose for one in sets))
    return [prompt for turn in turns for prompt in turn if prompt is not None][:count]


def outputs_of(plan: EvalPlan, sets: Sequence[PromptSets], stage: str, batches: Sequence[int]) -> int:
    """How many outputs each arm will write, timed."""
    prompts = sum(len(full_batches(prompts_of(one, stage), batch)) * batch for one in sets for batch in batches)
    return prompts * repeats_of(plan, stage) * len(plan.temperatures)
