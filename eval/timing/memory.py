"""Whether a plan fits into memory, before anything is loaded; and what would, where it does not.

An estimate from shapes: weights, the caches of the target and of every drafter (each keeps its own from one turn to
the next), what a prefill and a verification hold besides. It does not know the allocator's rounding, nor what else
the machine is doing: what it lets through can still run out, and is then told likewise (`memory_errors`).
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from factory.anatomy.families import BITS
from factory.anatomy.shapes import Shape
from factory.decoding.graphed import padded_capacity
from factory.decoding.static_cache import reserved
from factory.errors import DataError
from factory.forecasting.forecast import served
from factory.wording import size

_FULL = ("not enough memory", "can't allocate memory", "out of memory", "DefaultCPUAllocator")
PACKABLE = ("float32", "bfloat16")  # what a CPU's packed reader copies


@dataclass(frozen=True)
class Load:
    """What is asked of memory at once: `batch` prompts of at most `prompt` tokens, each answered with `new`, at k."""

    batch: int
    k: int
    prompt: int
    new: int

    @property
    def tokens(self) -> int:
        """What a row's prompt and output have together."""
        return self.prompt + self.new


@dataclass(frozen=True)
class Models:
    """The models that run, by their shapes; `exact`: a float64 target and a drafter are read beside them for parity."""

    target: Shape
    drafters: Sequence[Shape]
    dtype: str
    packed: bool = False  # layers and heads lie in memory twice
    exact: bool = False
    graphed: bool = False  # caches are reserved by powers of two

    @property
    def _served(self) -> list[Shape]:
        return [served(shape, self.dtype) for shape in (self.target, *self.drafters)]

    @property
    def weight_bytes(self) -> float:
        """Of all models at once."""
        held = sum(shape.weight_bytes + (shape.step_bytes if self.packed else 0.0) for shape in self._served)
        if self.exact:
            held += 8 * (self.target.parameters + max((shape.parameters for shape in self.drafters), default=0))
        return held

    def cache_bytes(self, load: Load) -> float:
        """Keys and values of all models, with room for a round's guesses."""
        rows, tokens = load.batch, load.tokens + load.k + 1
        if self.graphed:
            rows, tokens = reserved(rows, padded_capacity(tokens))
        slots = rows * tokens
        return sum(cache_bytes_per_token(shape, self.dtype) for shape in (self.target, *self.drafters)) * slots

    def passing_bytes(self, load: Load) -> float:
        """Of the larger one: a prefill's activations and mask, or a verification's logits and distributions."""
        width, rows = BITS[self.dtype] / 8, load.batch * load.prompt
        activations = rows * (3 * self.target.ffn + 4 * self.target.hidden + load.prompt) * width
        vocabulary = self.target.head_rows
        logits = load.batch * vocabulary * ((load.k + 1) * (width + 8) + load.k * 8)  # p and q in float32, twice each
        return max(activations, logits)

    def needed_bytes(self, load: Load) -> float:
        """All of it."""
        return self.weight_bytes + self.cache_bytes(load) + self.passing_bytes(load)


def cache_bytes_per_token(shape: Shape, dtype: str) -> float:
    """Keys and values of one token in every layer."""
    return shape.layers * 2 * shape.kv_width * BITS[dtype] / 8


def free_bytes(device: str) -> int | None:
    """What may still be taken: of the device, or of this machine within this process's limits. None: not known."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    found = [_machine_free(), _group_free(), _process_free()]
    return min((free for free in found if free is not None), default=None)


def _machine_free() -> int | None:
    return _figures(Path("/proc/meminfo"), 1024).get("MemAvailable:")


def _group_free() -> int | None:
    """Within a container's limit. Pages of files count as used there, but are given up when they are asked for."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # there is none, or it says "max"
        return None
    return max(0, limit - used + _figures(folder / "memory.stat", 1).get("file", 0))


def _process_free() -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    mapped = _figures(Path("/proc/self/status"), 1024).get("VmSize:")
    return None if limit == resource.RLIM_INFINITY or mapped is None else max(0, limit - mapped)


def _figures(path: Path, unit_bytes: int) -> dict[str, int]:
    """Lines of a name and a number, as the kernel writes them, in bytes."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) * unit_bytes for words in lines if len(words) > 1 and words[1].isdecimal()}


def require_memory(models: Models, load: Load, free: int | None) -> None:
    """Raises DataError where the load does not fit into `free` bytes, with what would."""
    needed = models.needed_bytes(load)
    if free is None or needed <= free:
        return
    raise DataError(
        f"about {size(needed)} of memory are needed, and {size(free)} are free: weights {size(models.weight_bytes)}, "
        f"caches {size(models.cache_bytes(load))} (batch {load.batch}, k {load.k}, {load.tokens} tokens of prompt and "
        f"output a row), logits and activations {size(models.passing_bytes(load))}; {advice(models, load, free)}"
    )


def advice(models: Models, load: Load, free: int) -> str:
    """The nearest smaller load that fits: of a smaller batch, else of a smaller k too, else of shorter texts too."""

    def most(largest: int, smaller: Callable[[int], Load]) -> int:
        """The largest value that fits; what a load needs grows with it. 0 where none does."""
        low, high = 0, largest
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if models.needed_bytes(smaller(middle)) <= free else (low, middle - 1)
        return low

    batch = most(load.batch - 1, lambda rows: replace(load, batch=rows))
    if batch:
        return f"a batch of {batch} would fit: lower batches in the plan"
    k = most(load.k - 1, lambda guesses: replace(load, batch=1, k=guesses))
    if k:
        return f"at batch 1, k = {k} would fit: lower ks in the plan"
    tokens = most(
        load.tokens - 1, lambda total: Load(1, min(load.k, 1), total - min(load.new, total), min(load.new, total))
    )
    if tokens > 1:
        return (
            f"at batch 1 and k = 1, {tokens} tokens of prompt and output would fit: lower max_new_tokens in the plan, "
            "or give shorter prompts"
        )
    lean = ", with reader and drafter_reader `lean` in the plan (no packed copies)" if models.packed else ""
    return f"the weights alone do not fit: evaluate fewer drafters at once{lean}, in a smaller dtype, or elsewhere"


@contextmanager
def memory_errors(load: Load) -> Iterator[None]:
    """Raises DataError where memory runs out in the body: which load it was, and a smaller one."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not (isinstance(error, MemoryError) or any(words in str(error) for words in _FULL)):
            raise
        if load.batch > 1:
            remedy = f"lower batches in the plan to {load.batch // 2}"
        elif load.k > 1:
            remedy = f"lower ks in the plan below {load.k}"
        else:
            remedy = (
                f"lower max_new_tokens in the plan below {load.new}, or give prompts shorter than {load.prompt} tokens"
            )
        raise DataError(
            f"memory ran out at batch {load.batch}, k {load.k} and {load.tokens} tokens of prompt and output a row: "
            f"{remedy}; what is measured is kept"
        ) from error
