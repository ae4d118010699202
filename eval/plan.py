"""An EvalPlan: what is measured and how often, from a small YAML file. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from factory.errors import RecipeError
from factory.files.documents import Document, did_you_mean, given, read, validate

PLANS = Path(__file__).resolve().parent / "plans"

Guesses = Annotated[int, Field(ge=1, le=64)]
Rows = Annotated[int, Field(ge=1, le=64)]
Temperature = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]


_SIZE = r"[0-9]+(\.[0-9]+)?[KMG]i?B"
_SIZES: Any = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": f"^{_SIZE}$"}]}
_DEVICE = "auto|cpu|cuda(:[0-9]+)?"


def _size(value: int | str) -> int | str:
    if str(value).startswith("-") or (isinstance(value, str) and not re.fullmatch(_SIZE, value)):
        raise ValueError(f"{value} is no size; write bytes, or text such as 9GiB")
    return value


Size = Annotated[int | str, AfterValidator(_size), WithJsonSchema(_SIZES)]


def _device(name: str) -> str:
    if not re.fullmatch(_DEVICE, name):
        raise ValueError(f"'{name}' is no device here: write auto, cpu, cuda, or one GPU such as cuda:1")
    return name


Device = Annotated[str, AfterValidator(_device), WithJsonSchema({"type": "string", "pattern": f"^({_DEVICE})$"})]


class EvalPlan(BaseModel):
    """Everything that decides a measurement but the artifacts. Frozen; an unknown key is a fault."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    suites: tuple[str, ...] = Field(
        default=("code", "stories"), min_length=1, description="shipped suites; `--prompts FILE` replaces them"
    )
    prompts: int = Field(default=16, ge=2, description="of each suite, to choose by")
    confirm_prompts: int = Field(default=16, ge=2, description="of each suite, others than those, for the verdict")
    warmup_prompts: int = Field(
        default=4, ge=1, description="untimed, with the observer: warms up and measures the overlap"
    )
    max_new_tokens: int = Field(default=128, ge=2, description="longest output")
    ks: tuple[Guesses, ...] = Field(
        default=(2, 3, 4, 6), min_length=1, description="guesses a round that every drafter is tried at"
    )
    auto_k: bool = Field(default=False, description="also let every drafter's k be chosen anew in each round")
    lookup_ks: tuple[Guesses, ...] = Field(
        default=(4,), min_length=1, description="of prompt lookup: the free baseline, so never without"
    )
    raw_ks: tuple[Guesses, ...] = Field(
        default=(4,), min_length=1, description="of drafters as they were before training"
    )
    temperatures: tuple[Temperature, ...] = Field(default=(0.0, 1.0), min_length=1, description="0 is greedy")
    batches: tuple[Rows, ...] = Field(
        default=(1,), min_length=1, description="prompts at a time; the first decides the verdict"
    )
    map_batches: tuple[Rows, ...] = Field(
        default=(1, 2, 4, 8), min_length=1, description="of `--map`: prompts at a time"
    )
    map_contexts: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(64, 256), min_length=1, description="of `--map`: tokens of prompt"
    )
    map_samples: int = Field(default=6, ge=2, description="of `--map`: batches timed in each cell")
    map_new_tokens: int = Field(default=32, ge=2, description="of `--map`: longest output")
    top_k: int = Field(default=0, ge=0, description="sample from the likeliest tokens only; 0: off")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="sample from the likeliest tokens of that share only; 1: off"
    )
    min_p: float = Field(default=0.0, ge=0, le=1, description="least probability, as a share of the likeliest; 0: off")
    repetition_penalty: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="on logits of tokens that stand there already; 1: off"
    )
    frequency_penalty: float = Field(
        default=0.0, allow_inf_nan=False, description="off a logit for each time its token was written; 0: off"
    )
    presence_penalty: float = Field(
        default=0.0, allow_inf_nan=False, description="off a logit once its token was written; 0: off"
    )
    no_repeat_ngram_size: int = Field(default=0, ge=0, description="no n-gram of that length comes twice; 0: off")
    min_new_tokens: int = Field(default=0, ge=0, description="no text ends before; 0: off")
    repeats: int = Field(default=3, ge=1, description="times that each output is timed, to choose by")
    confirm_repeats: int = Field(default=3, ge=1, description="times that each output is timed, for the verdict")
    parity_prompts: int = Field(
        default=8, ge=1, description="whose outputs are compared with the target's; all suites together"
    )
    parity_new_tokens: int = Field(default=64, ge=2, description="longest output that is compared")
    seed: int = Field(default=0, ge=0, description="of all that is random")
    device: Device = Field(default="auto", description="auto, cpu, cuda, or one GPU such as cuda:1")
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: float32 on a CPU, bfloat16 on CUDA"
    )
    reader: Literal["auto", "eager", "lean", "packed", "compiled", "graphed"] = Field(
        default="auto", description="how the target runs, alone and verifying; auto: the fastest here"
    )
    drafter_reader: Literal["auto", "eager", "lean", "packed", "packed-int8", "compiled", "graphed"] = Field(
        default="auto", description="how drafters run; auto: the fastest here"
    )
    threads: int | None = Field(default=None, ge=1, le=4096, description="of the CPU; as torch finds them")
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = Field(
        default=None, description="lays the target over several GPUs of one process"
    )
    max_memory: dict[str, Size] | None = Field(
        default=None, description="of device_map: a GPU's number or cpu -> bytes, or such as 9GiB"
    )
    tensor_parallel: bool = Field(
        default=False, description="the launched processes hold one target together, in place of one each"
    )
    drafter_device: Device = Field(default="auto", description="auto: the target's first")

    _document: Document | None = PrivateAttr(default=None)  # the file that it was read from

    def place(self, key: str) -> str:
        """How a fault in the value of that key begins: `file:line: key`, or `plan: key` where no file was read."""
        return f"plan: {key}" if self._document is None else self._document.place((key,))

    @field_validator("max_memory")
    @classmethod
    def _known_devices(cls, memory: dict[str, Size] | None) -> dict[str, Size] | None:
        for name in memory or ():
            if not re.fullmatch("cpu|[0-9]+", name):
                raise ValueError(f"'{name}' is no device here: write a GPU's number, such as 0, or cpu")
        return memory

    @model_validator(mode="after")
    def _one_placement(self) -> EvalPlan:
        faults = []
        if self.device_map is not None and self.tensor_parallel:
            faults.append("tensor_parallel: a target with a device_map is divided already: write one of the two")
        if self.device_map is not None and self.device not in ("auto", "cuda"):
            faults.append(f"device_map: divides the target over GPUs, and `device: {self.device}` is one device")
        if self.max_memory is not None and self.device_map is None:
            faults.append("max_memory: bounds what device_map may use: write `device_map: auto` too")
        if self.tensor_parallel and self.device not in ("auto", "cpu", "cuda"):
            faults.append(f"tensor_parallel: each process has a device of its own, and `device: {self.device}` is one")
        if faults:
            raise ValueError("\n".join(faults))
        return self

    @field_validator("suites", "ks", "lookup_ks", "raw_ks", "temperatures", "batches", "map_batches", "map_contexts")
    @classmethod
    def _no_repeats(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) != len(values):
            raise ValueError("names the same value twice")
        return values


def shipped_plans() -> list[str]:
    """The names that `--plan` knows without a path."""
    return sorted(path.stem for path in PLANS.glob("*.yaml"))


def load_plan(source: str | Path | Mapping[str, Any] | None) -> EvalPlan:
    """A shipped plan by its name, or a plan file by its path, or what would stand in one; None is `default`.

    Raises RecipeError with every fault as `file:line: key: what is wrong`.
    """
    if isinstance(source, Mapping):
        return _of(given(source, "plan"))
    name = "default" if source is None else str(source)
    path = PLANS / f"{name}.yaml" if name in shipped_plans() else Path(name)
    if not path.is_file():
        found = "a folder" if name and path.is_dir() else "no such file"
        meant = did_you_mean(name, shipped_plans()) or f"; give a path, or one of: {', '.join(shipped_plans())}"
        raise RecipeError(f"plan {name or repr(name)}: {found}{meant}")
    return _of(read(path, example="ks: [2, 4]"))


def _of(document: Document) -> EvalPlan:
    if "stages" in document.data:
        mark, name = document.mark(("stages",)), document.name
        raise RecipeError(f"{mark}: a recipe, where a plan of an evaluation is wanted: `factory build {name}` takes it")
    plan = validate(document, EvalPlan)
    plan._document = document
    return plan
