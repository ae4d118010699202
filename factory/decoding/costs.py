"""What a round costs by k, measured on the pair itself: what a pace decides by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from statistics import median

import torch

from factory.decoding.batch import Limits, Round
from factory.decoding.decoder import speculative
from factory.decoding.drafters import Drafter
from factory.decoding.pace import Costs
from factory.decoding.reader import Reader
from factory.decoding.rejection import Draft
from factory.decoding.sampler import Sampler
from factory.decoding.sampling import Noise, Sampling
from factory.errors import DataError

KS = (1, 2, 4, 8)
_REPEATS = 9
AT_ONCE = 192  # tokens written before the texts begin anew, so that they stay near the prompts' length


def measure_costs(
    target: Reader,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    now_s: Callable[[], float],
    ks: Sequence[int] = KS,
) -> Costs:
    """Medians of real rounds behind these prompts, a batch of len(prompts), in which k = 0 and all `ks` take turns.

    `now_s` is a clock that waits for the device. Where a drafter offers fewer than k guesses, others are
    put behind them: what matters is what a full round costs, not how often there is one. Of prompts that
    leave little of the context their end is taken. All that takes some 80 rounds.

    Raises ValueError for a k below 1, DataError where the context has no room for the smallest k.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"the k to measure must be at least 1, got {list(ks)}")
    room = min(AT_ONCE, target.context // 2)  # tokens that a text may have
    texts = [list(prompt[-(target.context - room) :]) for prompt in prompts]
    fitting = sorted(k for k in set(ks) if k + 2 <= room)
    if not fitting:
        raise DataError(f"a context of {target.context} tokens has no room for rounds of {min(ks)} guesses")
    measuring = _Measuring(fitting, len(texts), now_s)
    filled, noise = _Filled(drafter), Noise(0, range(len(texts)), target.device)
    limits = Limits(room, frozenset(), target.context)
    with suppress(_Enough):
        while True:
            speculative(target, filled, texts, measuring, sampling, limits, noise, clock=measuring)
    parts = {(part, k): median(spent) for (part, k), spent in measuring.spent_s.items()}
    return Costs(
        rows=len(texts),
        draft_s={k: parts["draft", k] for k in fitting},
        verify_s={k: parts["verify", k] for k in (0, *fitting)},
        rest_s={k: parts["rest", k] for k in (0, *fitting)},
        read_s=_reading_s(target, drafter, texts, sampling, now_s),
    )


@torch.inference_mode()
def _reading_s(
    target: Reader, drafter: Drafter, texts: list[list[int]], sampling: Sampling, now_s: Callable[[], float]
) -> float:
    """Seconds a token that the drafter takes to read these texts."""
    longest, noise, found_s = max(map(len, texts)), Noise(0, range(len(texts)), target.device), []
    for _ in range(_REPEATS):
        sampler = Sampler(
            sampling, noise, texts, capacity=longest + 1, vocabulary=target.vocabulary, device=target.device
        )
        begun_s = now_s()
        drafter.start(texts, longest + 1, sampler)
        found_s.append(now_s() - begun_s)
    return median(found_s) / longest


class _Enough(Exception):  # noqa: N818 - nothing went wrong
    """Every k was measured often enough."""


class _Measuring:
    """A Pace in which every k has its turn, and the Clock that sees what it takes."""

    def __init__(self, ks: Sequence[int], rows: int, now_s: Callable[[], float]) -> None:
        self.most = max(ks)
        self._rows = rows
        self.spent_s: dict[tuple[str, int], list[float]] = defaultdict(list)
        self._now_s = now_s
        # behind a plain step the drafter has a token more to read, so that turn is not looked at
        self._turns = iter([(0, True), (min(ks), False), *((k, True) for k in ks)] * _REPEATS)
        self._turn = next(self._turns)
        self._in_round = False
        self._parts_s: dict[str, float] = {}
        self._begun_s = 0.0

    def begin(self, prompt_tokens: int) -> bool:
        """The drafter reads the prompts at once."""
        self._in_round = False
        return True

    def choose(self, room: Sequence[int]) -> int:
        """Whose turn it is."""
        self._in_round = True
        return self._turn[0]

    def saw(self, done: Round) -> None:
        """Keep the times of a full round; the turn of one that was not comes again in the next text."""
        now_s = self._now_s()
        k, looked_at = self._turn
        if self._in_round and done.proposed == [k] * self._rows:
            if looked_at:
                draft_s, verify_s = self._parts_s["draft"], self._parts_s["verify"]
                rest_s = now_s - self._begun_s - draft_s - verify_s
                for part, seconds in (("draft", draft_s), ("verify", verify_s), ("rest", rest_s)):
                    self.spent_s[part, k].append(seconds)
            turn = next(self._turns, None)
            if turn is None:
                raise _Enough
            self._turn = turn
        self._begun_s = self._now_s()

    @contextmanager
    def span(self, what: str) -> Iterator[None]:
        """Keeps what the body took."""
        begun_s = self._now_s()
        yield
        self._parts_s[what] = self._now_s() - begun_s


class _Filled:
    """A drafter that always offers k guesses: its own, and others where it has none."""

    def __init__(self, drafter: Drafter) -> None:
        self.name, self.vocabulary = drafter.name, drafter.vocabulary
        self._drafter = drafter

    def start(self, prompts: list[list[int]], capacity: int, sampler: Sampler) -> None:
        self._drafter.start(prompts, capacity, sampler)

    def prepare(self, rows: int, ks: Sequence[int], tokens: int, sampling: Sampling) -> None:
        self._drafter.prepare(rows, ks, tokens, sampling)

    def propose(self, k: int) -> Draft:
        draft = self._drafter.propose(k)
        if all(length == k for length in draft.length):
            return draft
        missing = k - draft.tokens.shape[1]
        return Draft(torch.nn.functional.pad(draft.tokens, (0, missing)), [k] * len(draft.length), None)

    def commit(self, tokens: list[list[int]]) -> None:
        self._drafter.commit(tokens)

    def select(self, rows: list[int]) -> None:
        self._drafter.select(rows)
