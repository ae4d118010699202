"""An EvalPlan: what is measured and how often, from a small YAML file. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from factory.documents import read, validate
from factory.errors import RecipeError

PLANS = Path(__file__).resolve().parent / "plans"

Guesses = Annotated[int, Field(ge=1, le=64)]
Rows = Annotated[int, Field(ge=1, le=64)]
Temperature = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]


class EvalPlan(BaseModel):
    """Everything that decides a measurement but the artifacts. Frozen; an unknown key is a fault."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    suites: tuple[str, ...] = Field(
        default=("code", "stories"), min_length=1
    )  # shipped suites; `--prompts FILE` replaces them
    prompts: int = Field(default=16, ge=2)  # of each suite, to choose by
    confirm_prompts: int = Field(default=16, ge=2)  # of each suite, others than those, for the verdict
    warmup_prompts: int = Field(default=4, ge=1)  # untimed, with the observer: warms up and measures the overlap
    max_new_tokens: int = Field(default=128, ge=2)
    ks: tuple[Guesses, ...] = Field(default=(2, 3, 4, 6), min_length=1)
    auto_k: bool = False  # also let every drafter's k be chosen anew in each round
    lookup_ks: tuple[Guesses, ...] = Field(default=(4,), min_length=1)  # the free baseline, so never without
    raw_ks: tuple[Guesses, ...] = Field(default=(4,), min_length=1)  # drafters as they were before training
    temperatures: tuple[Temperature, ...] = Field(default=(0.0, 1.0), min_length=1)
    batches: tuple[Rows, ...] = Field(default=(1,), min_length=1)  # prompts at a time; the first decides the verdict
    map_batches: tuple[Rows, ...] = Field(default=(1, 2, 4, 8), min_length=1)  # of `--map`, as are the next three
    map_contexts: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(64, 256), min_length=1)  # tokens of prompt
    map_samples: int = Field(default=6, ge=2)  # batches timed in each cell
    map_new_tokens: int = Field(default=32, ge=2)
    top_k: int = Field(default=0, ge=0)  # 0 = off
    top_p: float = Field(default=1.0, gt=0, le=1)  # 1 = off
    min_p: float = Field(default=0.0, ge=0, le=1)  # 0 = off, as for the rest but where it says otherwise
    repetition_penalty: float = Field(default=1.0, gt=0, allow_inf_nan=False)  # 1 = off
    frequency_penalty: float = Field(default=0.0, allow_inf_nan=False)
    presence_penalty: float = Field(default=0.0, allow_inf_nan=False)
    no_repeat_ngram_size: int = Field(default=0, ge=0)
    min_new_tokens: int = Field(default=0, ge=0)
    repeats: int = Field(default=3, ge=1)
    confirm_repeats: int = Field(default=3, ge=1)
    parity_prompts: int = Field(default=8, ge=1)  # all suites together
    parity_new_tokens: int = Field(default=64, ge=2)
    seed: int = Field(default=0, ge=0)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "auto"
    reader: Literal["auto", "eager", "lean", "packed", "compiled", "graphed"] = (
        "auto"  # how the target runs, alone and verifying
    )
    drafter_reader: Literal["auto", "eager", "lean", "packed", "packed-int8", "compiled", "graphed"] = "auto"
    threads: int | None = Field(default=None, ge=1)  # None = as torch finds it

    @field_validator("suites", "ks", "lookup_ks", "raw_ks", "temperatures", "batches", "map_batches", "map_contexts")
    @classmethod
    def _no_repeats(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) != len(values):
            raise ValueError("names the same value twice")
        return values


def shipped_plans() -> list[str]:
    """The names that `--plan` knows without a path."""
    return sorted(path.stem for path in PLANS.glob("*.yaml"))


def load_plan(source: str | Path | None) -> EvalPlan:
    """A shipped plan by its name, or a plan file by its path; None is `default`.

    Raises RecipeError with every fault as `file:line: key: what is wrong`.
    """
    name = "default" if source is None else str(source)
    path = PLANS / f"{name}.yaml" if name in shipped_plans() else Path(name)
    if not path.is_file():
        raise RecipeError(f"plan {name}: no such file; give a path, or one of: {', '.join(shipped_plans())}")
    return validate(read(path), EvalPlan)
