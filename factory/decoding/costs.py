"""What a round costs by k, measured on the pair itself: what a pace decides by."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from factory.decoding.batch import Limits, Round
from factory.decoding.decoder import autoregressive, speculative
from factory.decoding.drafters import Drafter
from factory.decoding.pace import Costs
from factory.decoding.reader import Reader
from factory.decoding.sampling import Noise, Sampling
from factory.errors import DataError

KS = (1, 2, 4, 8)
_ROUNDS = 12  # of each k in one repeat
_REPEATS = 3


def measure_costs(
    target: Reader,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    now_s: Callable[[], float],
    ks: Sequence[int] = KS,
) -> Costs:
    """Medians of real rounds that write behind these prompts, every k in turn, some repeats: a batch of len(prompts).

    Only rounds count in which every row was offered k guesses; prompts are read twice over, so that a
    drafter that copies has something to offer. What is measured here takes some hundred steps of the
    target. Raises DataError where no round of any k could be measured.
    """
    context = target.context
    most = max(ks)
    room = (context - _ROUNDS * (most + 1) - 1) // 2
    texts = [[*prompt[-max(1, room) :]] * 2 for prompt in prompts]
    parts: dict[int, list[tuple[float, float, float]]] = defaultdict(list)  # k -> (draft, verify, rest) of each round
    reading_s: list[float] = []
    for _ in range(_REPEATS):
        for k in (0, *ks):
            limits = Limits(max(2, min(_ROUNDS * (k + 1), context - max(map(len, texts)))), frozenset(), context)
            watch = _Watch(now_s, k, len(texts))
            given = (sampling, limits, Noise(0, range(len(texts)), target.device))
            if k == 0:
                autoregressive(target, texts, *given, clock=watch, listener=watch.ended)
                alone_s = watch.prefill_s
            else:
                speculative(target, drafter, texts, k, *given, clock=watch, listener=watch.ended)
                reading_s.append(max(0.0, watch.prefill_s - alone_s) / max(map(len, texts)))
            parts[k] += watch.rounds
    found = {k: tuple(map(statistics.median, zip(*rounds, strict=True))) for k, rounds in parts.items() if rounds}
    if 0 not in found or len(found) < 2:
        raise DataError(
            f"{drafter.name} offered nothing in any round behind these prompts, so k: auto has no costs: give a fixed k"
        )
    return Costs(
        rows=len(texts),
        draft_s={k: draft for k, (draft, _, _) in found.items() if k > 0},
        verify_s={k: verify for k, (_, verify, _) in found.items()},
        rest_s={k: rest for k, (_, _, rest) in found.items()},
        read_s=statistics.median(reading_s),
    )


class _Watch:
    """A Clock and a Listener: (draft, verify, rest) seconds of every whole round."""

    def __init__(self, now_s: Callable[[], float], k: int, rows: int) -> None:
        self._now_s, self._k, self._rows = now_s, k, rows
        self._spans: dict[str, float] = defaultdict(float)
        self._ended_s = now_s()
        self.prefill_s = 0.0
        self.rounds: list[tuple[float, float, float]] = []

    @contextmanager
    def span(self, what: str) -> Iterator[None]:
        """Adds what the body took."""
        begun_s = self._now_s()
        yield
        self._spans[what] += self._now_s() - begun_s

    def ended(self, done: Round) -> None:
        """Closes the account of a round; the prefill's has none."""
        now_s = self._now_s()
        draft, verify = self._spans["draft"], self._spans["verify"]
        if self._spans["prefill"]:
            self.prefill_s = self._spans["prefill"]
        elif len(done.rows) == self._rows and all(guesses == self._k for guesses in done.proposed):
            self.rounds.append((draft, verify, max(0.0, now_s - self._ended_s - draft - verify)))
        self._spans.clear()
        self._ended_s = now_s
