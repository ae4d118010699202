"""Reads and drafts by replaying CUDA graphs: a pass of k + 1 tokens is one launch, and so is a draft of k tokens.

At batch 1 a GPU reads a small model's weights in less time than the host takes to launch its kernels. Recorded, a
pass costs the host one launch, whatever it consists of. Kernels themselves are few only where they are fused: each
layer is compiled by inductor first, which takes seconds once, and for all layers alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch.nn.functional import pad
from torch.utils._triton import has_triton
from transformers import PreTrainedModel

from factory.decoding.graphs import Function, Graphs, Outputs
from factory.decoding.launching import power_of_two
from factory.decoding.lean import LeanReader
from factory.decoding.sampling import Sampling
from factory.decoding.sending import staged
from factory.decoding.static_cache import StaticCache
from factory.decoding.static_pass import StaticPass
from factory.decoding.tuned import start_late
from factory.decoding.wiring import ProductMaker, plain_products, rotary_of

WIDTHS = (1, 2, 5, 9, 17, 33, 65)  # tokens a row that a recorded pass reads; fewer are padded, more are a prompt
ROWS = 64  # of the largest batch that is recorded
_BUCKET = 256  # cached slots that a recorded pass reads, at least; then by powers of two


def why_no_fusion(device: torch.device, traceable: bool = True) -> str | None:
    """Why layers cannot be compiled for that device; None where they can. `traceable`: as a Network says."""
    if device.type != "cuda":
        return None
    if not traceable:
        return "layers are recorded as they are, not fused: gptqmodel's kernels cannot be compiled with the rest"
    if not has_triton():
        return "layers are recorded as they are, not fused: torch finds no Triton, or the GPU is too old for it"
    return None


class _Read(NamedTuple):
    rows: int
    width: int
    stop: int


class _Write(NamedTuple):
    rows: int
    k: int
    stop: int
    sampling: Sampling
    vocabulary: int


class GraphedReader(LeanReader):
    """A `LeanReader` whose passes of up to 65 tokens a row are recorded and replayed; prompts run as they do there.

    Recordings are keyed by batch (a power of two), width (`WIDTHS`) and a bucket of cached slots (powers of two), are
    made at first use or by `prepare`, share one pool of memory, and are dropped when the cache has to move. Where a
    layer cannot be compiled it is recorded as it is; where nothing can be recorded, passes run as a LeanReader's: `why`
    then has the reason. On a CPU nothing is recorded, and the same passes run one by one.

    Raises what a LeanReader raises.
    """

    name = "graphed"

    def __init__(
        self,
        model: PreTrainedModel,
        make: ProductMaker = plain_products,
        *,
        fuse: bool | None = None,
        kernels: bool = False,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`fuse`: whether layers are compiled; None: where the device is no CPU and they can be.

        `kernels`: whether attention is the project's own kernel's.
        """
        super().__init__(model, make)
        network = self._network
        self._cache: StaticCache = StaticCache(
            len(network.layers), network.kv_heads, network.width, model.dtype, model.device
        )
        if self._has_rotary:
            self._rotary = rotary_of(model, network.width, self.context)
        self._graphs = Graphs(self.device, now_s)
        self._started = 1  # rows of the batch that is read, as a power of two
        self._generation = 0  # of the cache that recordings were made on
        self._recording = True
        self._pass = StaticPass(
            network,
            self._cache,
            self._rotary,
            context=self.context,
            vocabulary=self.vocabulary,
            window=self._window,
            kinds=self._kinds,
            dtype=model.dtype,
            kernels=kernels,
        )
        if fuse is None:
            self.why = why_no_fusion(self.device, network.traceable)
            fuse = self.device.type != "cpu" and self.why is None
        if fuse:
            self._pass.fuse()

    @property
    def graphs(self) -> int:
        """How many recordings there are."""
        return len(self._graphs)

    @property
    def compile_s(self) -> float:
        """Seconds that compiling and recording took so far."""
        return self._graphs.seconds

    def start(self, rows: int, capacity: int) -> None:
        """An empty cache of that many rows; what was reserved for an earlier batch is used again."""
        self.lengths = [0] * rows
        self._started = power_of_two(rows)
        self._cache.reserve(rows, padded_capacity(capacity))
        self._settle()

    def records(self, rows: int, width: int) -> bool:
        """Whether a pass of so many tokens in each of so many rows is a recorded one."""
        return self._recording and 0 < rows <= ROWS and 0 < width <= WIDTHS[-1]

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Passes in the body run as a LeanReader's: for what comes in any width, and too seldom to be recorded."""
        recording, self._recording = self._recording, False
        try:
            yield
        finally:
            self._recording = recording

    def prepare(self, rows: int, widths: Sequence[int], tokens: int) -> None:
        """As every reader; it compiles and records."""
        for width in sorted({_padded(width) for width in widths if self.records(rows, width)}):
            self.start(rows, tokens)
            for size in self._sizes():
                for stop in _buckets(tokens + width):
                    self._logits(torch.zeros(size, width, dtype=torch.long), [0] * size, width, stop)

    def prepare_writing(self, rows: int, k: int, tokens: int, sampling: Sampling, vocabulary: int) -> None:
        """The same for `write`."""
        if not self.records(rows, 2):
            return
        self.start(rows, tokens)
        for size in self._sizes():
            numbers = None if sampling.greedy else torch.zeros(size, k, dtype=torch.float64)
            for stop in _buckets(tokens + 1 + k):
                self._guesses([[0, 0]] * size, [0] * size, k, stop, sampling, numbers, vocabulary)

    def recorded_k(self, least: int, rows: int, sampling: Sampling, vocabulary: int) -> int:
        """The smallest k from `least` on that `write` has a recording of; `least` where there is none.

        A text's last rounds have room for fewer guesses: the steps too many cost less than a recording.
        """
        size, longest = self._size(rows), max(self.lengths)
        keys = (_Write(size, k, _stop(longest + 1 + k), sampling, vocabulary) for k in range(least, WIDTHS[-1]))
        return next((key.k for key in keys if key in self._graphs), least)

    def write(
        self,
        last: Sequence[Sequence[int]],
        k: int,
        sampling: Sampling,
        numbers: torch.Tensor | None,
        vocabulary: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """k tokens behind each row's text, each drawn from the model's distribution q: [B, k] and [B, k, vocabulary].

        The last two tokens of each text are given, and the cache holds all before them: after a round one or two are
        missing, and a recording always reads both. `numbers` [B, k] float64 are those that tokens are drawn with; under
        greedy there are none, and no q. Afterwards the cache holds all but the last guess. A row too long for the
        context gets tokens that mean nothing.
        """
        lengths = [min(length, self.context - 2) for length in self.lengths]
        stop = self._bucket(max(lengths) + 1 + k)
        found = self._guesses(last, lengths, k, stop, sampling, numbers, vocabulary)
        self.lengths = [length + 1 + k for length in lengths]
        rows = len(last)
        tokens, q = (found, None) if isinstance(found, torch.Tensor) else found
        return tokens[:rows].clone(), None if q is None else q[:rows].clone()

    def _forward(self, tokens: torch.Tensor, count: list[int] | None, keep: int | torch.Tensor) -> torch.Tensor:
        rows, width = tokens.shape
        if not self.records(rows, width) or max(self.lengths) == 0:
            logits = super()._forward(tokens, count, keep)
            self._settle()  # a long prompt may have moved the cache
            return logits
        lengths = [old + new for old, new in zip(self.lengths, count or [width] * rows, strict=True)]
        if max(lengths) > self.context:
            raise ValueError(f"{max(lengths)} tokens do not fit into a context of {self.context}")
        logits = self._logits(tokens, self.lengths, self._width(rows, width))[:rows, :width]
        self.lengths = lengths
        if isinstance(keep, torch.Tensor):
            return logits[:, keep]
        return (logits[:, -keep:] if keep else logits).clone()  # the next replay writes over them

    def _size(self, rows: int) -> int:
        """Of the batch that is read where so many rows are left of the one that was started."""
        return min(size for size in self._sizes() if size >= rows)

    def _sizes(self) -> list[int]:
        """A quarter at a time: at few rows those that have ended cost little, and every size has to be compiled."""
        return sorted({max(1, self._started >> 2 * step) for step in range(4)}, reverse=True)

    def _bucket(self, needed: int) -> int:
        """Cached slots that a pass reads which writes no slot behind `needed`; the cache has as many."""
        if needed > self._cache.capacity:
            self._cache.grow(needed)
            self._settle()
        return _stop(needed)

    @torch.inference_mode()
    def _settle(self) -> None:
        """Forget what was recorded on a cache that is no more."""
        if self._generation != self._cache.generation:
            self._graphs.clear()
            self._generation = self._cache.generation
            self._number(self._cache.capacity)

    def _width(self, rows: int, width: int) -> int:
        """Tokens that a pass of `width` is padded to: of the first recording that holds so many, but for single ones.

        So the last verifications of a text, which have fewer guesses, need no recording of their own.
        """
        size, longest = self._size(rows), max(self.lengths)
        wider = (known for known in WIDTHS if known >= width > 1)
        return next(
            (known for known in wider if _Read(size, known, _stop(longest + known)) in self._graphs), _padded(width)
        )

    @torch.inference_mode()
    def _logits(self, tokens: torch.Tensor, lengths: list[int], padded: int, stop: int | None = None) -> torch.Tensor:
        """Logits behind tokens [B, T] that follow `lengths` cached ones, T padded: [B, T, V], or of more rows."""
        rows, width = tokens.shape
        size, stop = self._size(rows), stop or self._bucket(max(lengths) + padded)
        if (size, padded) != (rows, width):
            tokens = pad(tokens, (0, padded - width, 0, size - rows))
        where = staged(lengths + [0] * (size - rows), self.device)
        found = self._run_recorded(_Read(size, padded, stop), partial(self._pass.read, stop=stop), [tokens, where])
        assert isinstance(found, torch.Tensor)
        return found

    @torch.inference_mode()
    def _guesses(
        self,
        last: Sequence[Sequence[int]],
        lengths: list[int],
        k: int,
        stop: int,
        sampling: Sampling,
        numbers: torch.Tensor | None,
        vocabulary: int,
    ) -> Outputs:
        """As `write`, for rows padded to a power of two."""
        missing = self._size(len(last)) - len(last)
        inputs = [
            staged([*last, *[[0, 0]] * missing], self.device),
            staged([*lengths, *[0] * missing], self.device),
        ]
        if numbers is not None:
            inputs.append(pad(numbers, (0, 0, 0, missing)) if missing else numbers)
        key = _Write(len(inputs[0]), k, stop, sampling, vocabulary)
        loop = partial(self._pass.write, k=k, stop=stop, sampling=sampling, vocabulary=vocabulary)
        return self._run_recorded(key, loop, inputs)

    def _run_recorded(self, key: Hashable, function: Function, inputs: Sequence[torch.Tensor]) -> Outputs:
        if key in self._graphs:
            return self._graphs.run(key, function, inputs)
        if not self._recording:
            return function(*(given.to(self.device) for given in inputs))
        try:
            with self._pass.compiling():
                return self._graphs.run(key, function, inputs)
        except torch.OutOfMemoryError:  # a simpler pass needs no less
            raise
        except Exception as error:  # inductor, Triton or CUDA, each with its own
            self._simplify(error)
            return self._run_recorded(key, function, inputs)

    def _simplify(self, error: Exception) -> None:
        """Do without what failed, and say so."""
        what = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''}"
        if start_late(self._network):
            reason = f"no kernel begins while the one before it ends: recording that failed ({what})"
        elif self._pass.fused:
            reason = f"layers are recorded as they are, not fused: compiling them failed ({what})"
            self._pass.unfuse()
        elif self._pass.kernels:
            reason = f"attention is torch's, not the project's kernel: recording it failed ({what})"
            self._pass.kernels = False
        else:
            reason = f"passes are not recorded: that failed ({what})"
            self._recording = False
        self.why = f"{self.why}; {reason}" if self.why else reason
        self._graphs.clear()


def padded_capacity(tokens: int) -> int:
    """Slots that a text of so many tokens needs: padding may lie behind its last, and a draft behind the context."""
    return tokens + WIDTHS[-1]


def _padded(width: int) -> int:
    """The first of WIDTHS that holds so many tokens."""
    return next(size for size in WIDTHS if width <= size)


def _stop(needed: int) -> int:
    """The bucket of a pass that writes no slot from `needed` on."""
    return max(_BUCKET, power_of_two(needed))


def _buckets(tokens: int) -> list[int]:
    """All buckets of a text that grows to so many tokens."""
    return [_BUCKET << power for power in range((_stop(tokens) // _BUCKET).bit_length())]
