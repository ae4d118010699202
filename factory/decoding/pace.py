"""How many tokens to propose in each round: always as many, or as many as pay by what has been seen so far."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from factory.decoding.batch import Round

_KEEP = 0.5 ** (1 / 32)  # what was seen counts half after 32 rounds
_PRIOR = 0.7  # acceptance of a first guess before any was seen: hopeful, since hope is soon tested, and fades
_PRIOR_WEIGHT = 2.0  # guesses that it counts for, and that of one place for the next
_DOUBT = 1.5  # standard errors by which drafting must seem slower than none to be given up
_PROBE_ROUNDS = 6
_PROBE_MOST = 2  # guesses a round
_PROBE_SHARE = 0.01  # of the time without drafting, for probing
_READ_SHARE = 0.03  # of the time without drafting, for reading what the drafter missed
_PROBE_KEEPS = 0.03  # of what was seen before a probe: a text that changed should show


class Pace(Protocol):
    """Decides before each round how many tokens are proposed, for all rows of a batch alike.

    What was written decides, never a clock: text stays exact, since no guess is looked at before the
    round's k is known.
    """

    most: int  # the largest k that it may choose

    def begin(self, prompt_tokens: int) -> bool:
        """A new batch with prompts of at most so many tokens; returns whether the drafter should read them now."""

    def choose(self, room: Sequence[int]) -> int:
        """k for the next round, 0 for a plain step; `room` is how many tokens each row may still write."""

    def saw(self, done: Round) -> None:
        """What a round brought; the prefill's comes first."""


class SteadyPace:
    """The same k in every round. Raises ValueError for k < 1."""

    def __init__(self, k: int) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.most = k

    def begin(self, prompt_tokens: int) -> bool:
        """The drafter reads the prompts at once."""
        return True

    def choose(self, room: Sequence[int]) -> int:
        """Always k."""
        return self.most

    def saw(self, done: Round) -> None:
        """Makes no difference."""


@dataclass(frozen=True)
class Costs:
    """Seconds of a round's parts by k, for a batch of `rows`; `costs.measure_costs` makes them.

    `verify_s` and `rest_s` (acceptance, rewind, the host) have an entry for k = 0, the plain step, too.
    What lies between two k is taken to lie on a line. Raises ValueError where an entry is missing.
    """

    rows: int
    draft_s: Mapping[int, float]
    verify_s: Mapping[int, float]
    rest_s: Mapping[int, float]
    read_s: float  # for each token of the text that the drafter has yet to read

    def __post_init__(self) -> None:
        if 0 not in self.verify_s or set(self.verify_s) != {0, *self.draft_s} or set(self.rest_s) != set(self.verify_s):
            raise ValueError("costs need the same k for each part, and k = 0 for verification and the rest")
        if len(self.verify_s) < 2:
            raise ValueError("costs need at least one k above 0")

    @property
    def most(self) -> int:
        """The largest k that was measured."""
        return max(self.verify_s)

    def drafting_s(self, k: int) -> float:
        """The drafter's part of a round."""
        return _between({0: 0.0, **self.draft_s}, k)

    def round_s(self, k: int) -> float:
        """A whole round in which every row was offered k guesses."""
        return self.drafting_s(k) + _between(self.verify_s, k) + _between(self.rest_s, k)


# Of a pair whose drafter costs a tenth of it: for where k is to vary, and no clock decides.
EVEN_COSTS = Costs(
    rows=1, draft_s={1: 0.1, 8: 0.8}, verify_s={0: 1.0, 1: 1.0, 8: 1.0}, rest_s={0: 0.0, 1: 0.0, 8: 0.0}, read_s=0.0
)


class AutoPace:
    """The k that brings most tokens a second, by measured costs and by which guesses stood so far; 0 where none pays.

    The expectation is Leviathan et al.'s (arXiv 2211.17192, eq. 1) without its assumption that all
    guesses are equally likely to stand: with a_i the share of i-th guesses that stood, among those that
    were examined, a round of k guesses brings 1 + a_1 + a_1 a_2 + ... + a_1...a_k tokens. Each a_i is
    counted with exponential forgetting and begins at a_(i-1), so that a larger k is tried as soon as a
    smaller one does well. Some drafters offer nothing in some rounds: how often they do is counted too.

    While drafting is off, a few rounds of it now and then notice a text that has changed. They take about
    1 % of the time; what the drafter has to read for them, which it has to once, at most 3 %.

    One pace serves many batches, one after another: what it has learnt stays.
    """

    def __init__(self, *costs: Costs, most: int | None = None) -> None:
        """`costs`: for several sizes of a batch, each used for those nearest to it. Raises ValueError for most < 1."""
        if not costs:
            raise ValueError("a pace needs costs")
        self.most = min(one.most for one in costs) if most is None else most
        if self.most < 1:
            raise ValueError(f"the largest k must be at least 1, got {self.most}")
        ordered = sorted(costs, key=lambda one: one.rows)
        self._tables = [_Table(one, self.most) for one in ordered]
        self._bounds = [math.sqrt(a.rows * b.rows) for a, b in pairwise(ordered)]
        self._stood = [_PRIOR * _PRIOR_WEIGHT] + [0.0] * (self.most - 1)  # by place in the draft, faded
        self._examined = [_PRIOR_WEIGHT] + [0.0] * (self.most - 1)
        self._wide, self._offered = _Share(), _Share()  # of rounds with guesses in any row; of rows with guesses
        self._off = False
        self._probing = _PROBE_ROUNDS  # rounds left in which drafting is not given up
        self._probe_most = self.most  # guesses a round in these
        self._plain_s = 0.0  # since it was given up
        self._unread = 0  # tokens that the drafter has not read
        self._room: list[int] = []
        self._k: int | None = None  # of the round that is going on

    @property
    def drafting(self) -> bool:
        """Whether guesses are made at present."""
        return not self._off

    def acceptance(self) -> list[float]:
        """How likely the guess at each place of a draft is to stand where those before it stood."""
        found = [self._stood[0] / self._examined[0]]
        for stood, examined in zip(self._stood[1:], self._examined[1:], strict=True):
            found.append((stood + _PRIOR_WEIGHT * found[-1]) / (examined + _PRIOR_WEIGHT))
        return found

    def begin(self, prompt_tokens: int) -> bool:
        """While drafting is off, the drafter need not read the prompts yet."""
        self._k = None
        self._unread = prompt_tokens if self._off else 0
        return not self._off

    def choose(self, room: Sequence[int]) -> int:
        """The k that brings most by what is known now."""
        self._room = list(room)
        most = min(self.most, max(room) - 1)
        self._k = self._choice(self._of(len(room)), most) if most > 0 else 0
        return self._k

    def saw(self, done: Round) -> None:
        """Count which guesses stood."""
        if self._k is None:  # the prefill's: nothing was chosen for it
            return
        if self._k == 0:
            self._plain_s += self._of(len(done.rows)).round_s[0]
            self._unread += max(map(len, done.emitted))
            return
        self._unread = 0
        self._probing = max(0, self._probing - 1)
        asked = [proposed > 0 for proposed, room in zip(done.proposed, self._room, strict=True) if room > 1]
        self._wide.count([any(asked)])
        self._offered.count(asked)
        if any(asked):
            self._fade(_KEEP)
            for accepted, proposed in zip(done.accepted, done.proposed, strict=True):
                for place in range(accepted):
                    self._stood[place] += 1
                for place in range(min(accepted + 1, proposed)):
                    self._examined[place] += 1

    def _choice(self, costs: _Table, most: int) -> int:
        if not costs.can_pay:
            return 0
        if self._off:
            if not self._probe_is_due(costs):
                return 0
            self._off, self._probing, self._probe_most, self._plain_s = False, _PROBE_ROUNDS, _PROBE_MOST, 0.0
            self._fade(_PROBE_KEEPS)
        k, tokens_per_s = self._fastest(costs, most)
        if self._probing:
            return min(k, self._probe_most)
        if tokens_per_s * costs.round_s[0] < 1 - self._doubt():
            self._off = True
            return 0
        return k

    def _doubt(self) -> float:
        """By how much a round's tokens may be underestimated, as a share of them, going by the first guess."""
        examined = self._examined[0]
        share = self._stood[0] / examined
        return _DOUBT * math.sqrt(share * (1 - share) / examined) / (1 + share)

    def _fastest(self, costs: _Table, most: int) -> tuple[int, float]:
        """The k above 0 that brings a row most tokens a second, and how many."""
        wide, offered = self._wide.value, self._offered.value
        standing, tokens, best = 1.0, 1.0, (1, 0.0)
        for k, share in enumerate(self.acceptance()[:most], 1):
            standing *= share
            tokens += offered * standing
            round_s = wide * costs.round_s[k] + (1 - wide) * (costs.round_s[0] + costs.draft_s[k])
            if tokens / round_s > best[1]:
                best = k, tokens / round_s
        return best

    def _probe_is_due(self, costs: _Table) -> bool:
        probe_s = _PROBE_ROUNDS * (costs.round_s[min(_PROBE_MOST, self.most)] - costs.round_s[0])
        read_s = self._unread * costs.read_s
        return self._plain_s * _PROBE_SHARE >= probe_s and self._plain_s * _READ_SHARE >= read_s

    def _fade(self, keep: float) -> None:
        self._stood = [keep * old for old in self._stood]
        self._examined = [keep * old for old in self._examined]

    def _of(self, rows: int) -> _Table:
        return self._tables[bisect_right(self._bounds, rows)]


class _Table:
    """Costs by k from 0 on."""

    def __init__(self, costs: Costs, most: int) -> None:
        self.round_s = [costs.round_s(k) for k in range(most + 1)]
        self.draft_s = [costs.drafting_s(k) for k in range(most + 1)]
        self.read_s = costs.read_s
        # whether drafting pays if every guess stands
        self.can_pay = any((k + 1) * self.round_s[0] > self.round_s[k] for k in range(1, most + 1))


class _Share:
    """How often something was so, faded."""

    def __init__(self) -> None:
        self._so, self._of = 1.0, 1.0

    @property
    def value(self) -> float:
        return self._so / self._of

    def count(self, so: Sequence[bool]) -> None:
        self._so, self._of = _KEEP * self._so + sum(so), _KEEP * self._of + len(so)


def _between(known: Mapping[int, float], k: int) -> float:
    """The value at k on lines through the known ones; beyond the last, on the last line."""
    if k in known:
        return known[k]
    places = sorted(known)
    right = min(max(bisect_right(places, k), 1), len(places) - 1)
    low, high = places[right - 1], places[right]
    return known[low] + (known[high] - known[low]) * (k - low) / (high - low)
