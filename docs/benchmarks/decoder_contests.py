"""Whole outputs, timed: against peers, with the best drafter, in batches; and what was forecast of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from decoder_pairs import DTYPE, SHIPPED, Pair, SkippedError
from decoder_passes import Row, row

from eval import peers
from eval.measurement import acceptance
from eval.peers import Contestant, Ours, Timings
from eval.suites import Prompt
from eval.verdict.stats import Interval, speedup
from factory.decoding.compiled import why_no_compiler
from factory.decoding.costs import measure_costs
from factory.decoding.decoder import autoregressive
from factory.decoding.drafters import Drafter, ModelDrafter, PromptLookup
from factory.decoding.pace import AutoPace
from factory.decoding.readers import ReaderKind
from factory.decoding.sampling import Noise, Sampling
from factory.forecasting.forecast import costs_in_time
from factory.forecasting.profile import DeviceProfile

TEMPERATURES = (0.0, 1.0)
ALONE, AUTO = "the target alone", "k auto"
GOALS = {  # ours, peer -> what it says, goal; the first one's goal depends on the model
    (peers.OURS, peers.GENERATE): ("our autoregressive decode / generate", 2.0),
    (peers.OURS_DRAFTED, peers.ASSISTED): ("our speculative decode / generate(assistant_model=)", 2.5),
    (peers.OURS_LOOKUP, peers.LOOKUP): ("our lookup decode / generate(prompt_lookup_num_tokens=)", 1.5),
    (peers.OURS, peers.COMPILED): ("our autoregressive decode / generate, static cache, compiled", None),
}
ALONE_GOAL = {SHIPPED: 2.0}
OTHER_ALONE_GOAL = 1.4


@dataclass(frozen=True)
class Way:
    """One way of drafting: a drafter by name and by reader, or prompt lookup, and k."""

    name: str
    kind: ReaderKind
    k: int
    lookup: bool = False

    @property
    def words(self) -> str:
        """As a table says it."""
        read = "" if self.lookup else f", reader {self.kind}"
        return f"{self.name}{read}, k = {self.k}"


def words(sampling: Sampling) -> str:
    """Greedy, or its temperature."""
    return "greedy" if sampling.greedy else f"temperature {sampling.temperature:g}"


def against_peers(pair: Pair, profile: DeviceProfile, compile_too: bool) -> Iterator[Row]:
    """Ours and `generate` in its ways, greedy and sampled; the whole contest goes along in the rows' detail."""
    name = pair.drafter() if pair.drafters else None
    match = pair.match(name, pair.settings.k)
    mine = peers.ours(match, pair.reader(), pair.reader(name) if name else None)
    field: list[Contestant] = [*mine, *peers.peers(match)]
    compile_s: float | None = None
    missing = why_no_compiler() if compile_too else "not asked for"
    if missing is None:
        try:
            peer, compile_s = peers.compiled(match, pair.timed)
            field.append(peer)
        except Exception as error:  # whatever a compiler says must not cost the other figures
            missing = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    for temperature in TEMPERATURES:
        sampling = Sampling(temperature=temperature)
        repeats = pair.settings.repeats if sampling.greedy else pair.settings.sampled_repeats
        found = peers.contest(field, pair.timed, sampling, repeats=repeats, seed=pair.settings.seed)
        same = peers.compare(match, pair.reader(), found) if sampling.greedy else {}
        base = found[peers.GENERATE]
        rows = [peers.figures(one, peers.faster(one, base), same.get(one.name)) for one in found.values()]
        contest = {"reader": pair.reader().name, "k": match.k, "rows": rows, "repeats": repeats}
        contest |= {"compile_s": compile_s, "not_compiled": missing, "temperature": temperature}
        for (arm, peer_name), (what, goal) in GOALS.items():
            if arm not in found or peer_name not in found:
                continue
            if peer_name == peers.GENERATE:
                goal = ALONE_GOAL.get(pair.name, OTHER_ALONE_GOAL)
            ratio = peers.faster(found[arm], found[peer_name])
            alphas = {name: acceptance(found[name].rounds).alpha for name in (arm, peer_name)}
            if arm != peers.OURS and None in alphas.values():
                goal = None  # nothing was proposed, so nothing is measured but the target alone
            rates = {
                "ours_tokens_per_s": found[arm].tokens_per_s,
                "theirs_tokens_per_s": found[peer_name].tokens_per_s,
            }
            if arm == peers.OURS:  # the target's weights read once a token, and nothing else
                floor_s = pair.shape().step_bytes / profile.bandwidth(pair.shape().step_bytes)
                rates["reading_weights_allows"] = 1 / floor_s / found[peer_name].tokens_per_s
            made = row(
                f"{what}, {words(sampling)}",
                pair.name,
                ratio,
                (">=", goal) if goal else None,
                alpha=alphas,
                **rates,
            )
            if arm == peers.OURS and peer_name == peers.GENERATE:
                made["contest"] = contest
            yield made


class Contests:
    """Our own arms on the shipped target or another pair, k beside k; asked for again, they are not timed again."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self._chosen: dict[float, list[tuple[Way, Interval]]] = {}
        self._fresh: dict[float, dict[str, Any]] = {}

    def ways(self) -> list[Way]:
        """Every drafter by every reader that may draft and every k; prompt lookup at the peers' k."""
        kinds: tuple[ReaderKind, ...] = ("auto", "packed-int8")
        found = [Way("prompt lookup", "auto", self.pair.settings.k, lookup=True)]
        for name in self.pair.drafters:
            for kind in kinds:
                if kind == "auto" or self.pair.reader(name, kind).name == kind:
                    found += [Way(name, kind, k) for k in self.pair.settings.ks]
        return found

    def arm(self, way: Way | None) -> Ours:
        """A contestant; None is the target alone."""
        if way is None:
            return Ours(ALONE, self.pair.match(None, 1), self.pair.reader())
        return Ours(way.words, self.pair.match(None, way.k), self.pair.reader(), self.drafter(way))

    def drafter(self, way: Way) -> Drafter:
        """What drafts in that way."""
        reader = self.pair.reader()
        if way.lookup:
            return PromptLookup(peers.MAX_NGRAM, vocabulary=reader.vocabulary, device=reader.device)
        return ModelDrafter(self.pair.reader(way.name, way.kind), way.name)

    def run(self, ways: Sequence[Way], prompts: Sequence[Prompt], sampling: Sampling) -> dict[str, Timings]:
        """The target alone and those ways, interleaved."""
        field = [self.arm(None), *(self.arm(way) for way in ways)]
        repeats = self.pair.settings.repeats
        return peers.contest(field, prompts, sampling, repeats=repeats, seed=self.pair.settings.seed)

    def chosen(self, temperature: float) -> list[tuple[Way, Interval]]:
        """All ways on the prompts to choose by, the fastest drafter first; prompt lookup last."""
        if temperature not in self._chosen:
            self.pair.drafter()  # says what is missing
            ways = self.ways()
            found = self.run(ways, self.pair.timed, Sampling(temperature=temperature))
            base = found[ALONE]
            ratios = [(way, peers.faster(found[way.words], base)) for way in ways]
            self._chosen[temperature] = sorted(ratios, key=lambda one: (one[0].lookup, -one[1].value))
        return self._chosen[temperature]

    def confirmed(self, temperature: float) -> dict[str, Any]:
        """The fastest drafter and prompt lookup on fresh prompts: ways, timings, audits."""
        if temperature not in self._fresh:
            ranked = [way for way, _ in self.chosen(temperature)]
            ways = [ranked[0], next(way for way in ranked if way.lookup)]
            sampling = Sampling(temperature=temperature)
            found = self.run(ways, self.pair.fresh or self.pair.timed, sampling)
            match = self.pair.match(None, max(way.k for way in ways))
            same = peers.compare(match, self.pair.reader(), found, ALONE) if sampling.greedy else {}
            self._fresh[temperature] = {"ways": ways, "found": found, "same": same}
        return self._fresh[temperature]


def best_speedup(contests: Contests) -> Iterator[Row]:
    """The best drafter against the target alone, both on the fastest reader: chosen, then measured on fresh prompts."""
    for temperature in TEMPERATURES:
        sampling, ranked = Sampling(temperature=temperature), contests.chosen(temperature)
        told = contests.confirmed(temperature)
        for way in told["ways"]:
            one, base = told["found"][way.words], told["found"][ALONE]
            same = told["same"].get(way.words)
            yield row(
                f"speedup of {way.words}, {words(sampling)}",
                contests.pair.name,
                peers.faster(one, base),
                (">=", 1.8) if not way.lookup else None,
                alpha=acceptance(one.rounds).alpha,
                baseline_tokens_per_s=base.tokens_per_s,
                baseline_reader=contests.pair.reader().name,
                outputs=same.facts() if same else None,
                tried={other.words: ratio.value for other, ratio in ranked},
            )


def forecasts(contests: Contests, profile: DeviceProfile) -> Iterator[Row]:
    """Forecast at the measured alpha / measured, greedy: the best drafter in float32, at every k that was tried.

    8-bit drafters are in no forecast.
    """
    pair = contests.pair
    ranked = [way for way, _ in contests.chosen(0.0) if not way.lookup and way.kind == "auto"]
    best = ranked[0]
    ways = [way for way in ranked if way.name == best.name]
    found = contests.run(ways, pair.fresh or pair.timed, Sampling())
    costs = costs_in_time(pair.shape(best.name), pair.shape(), profile, DTYPE)
    for way in ways:
        one = found[way.words]
        measured, alpha = peers.faster(one, found[ALONE]), acceptance(one.rounds).alpha
        if alpha is None or measured.low is None or measured.high is None:
            continue
        said = costs.speedup(alpha, way.k)
        ratio = Interval(said / measured.value, said / measured.high, said / measured.low)
        yield row(
            f"forecast / measured speedup, {way.words}",
            pair.name,
            ratio,
            ("within", 0.10),
            forecast=said,
            measured=measured.value,
            alpha=alpha,
            forecast_c=costs.c,
        )


def auto_k(contests: Contests, temperatures: Sequence[float]) -> Iterator[Row]:
    """k: auto / the best fixed k, none at all among them: chosen on some prompts, both measured again on others.

    Chosen and compared in one run the best of several would be too fast by its luck. Costs are measured
    on the pair before, outside the timing; what the pace learns stays from output to output, as in a server.
    """
    pair = contests.pair
    name = pair.drafter()
    steady = [Way(name, "auto", k) for k in pair.settings.ks]
    for temperature in temperatures:
        sampling = Sampling(temperature=temperature)
        found = contests.run(steady, pair.timed, sampling)
        rates = {None: found[ALONE].tokens_per_s} | {way: found[way.words].tokens_per_s for way in steady}
        best = max(rates, key=lambda way: rates[way])
        drafter = contests.drafter(steady[0])
        costs = measure_costs(pair.reader(), drafter, [pair.timed[0].ids], sampling, time.perf_counter)
        field = [contests.arm(best), Ours(AUTO, pair.match(None, 1), pair.reader(), drafter, AutoPace(costs))]
        prompts, repeats = pair.fresh or pair.timed, pair.settings.repeats
        again = peers.contest(field, prompts, sampling, repeats=repeats, seed=pair.settings.seed)
        auto = again[AUTO]
        rounds = [guesses for output in auto.rounds for guesses in output.proposed]
        yield row(
            f"k auto / best fixed k ({best.k if best else 'no drafting'}), {words(sampling)}",
            pair.name,
            peers.faster(auto, again[field[0].name]),
            (">=", 0.97),
            alpha=acceptance(auto.rounds).alpha,
            proposed_a_round=sum(rounds) / max(1, len(rounds)),
            tried={(way.words if way else ALONE): rate for way, rate in rates.items()},
        )


def batches(pair: Pair, size: int | None = None, least: float | None = 3.0) -> Iterator[Row]:
    """Tokens a second of a batch / of its prompts one by one, the target alone, greedy. `least` is the goal."""
    size, reader, seed = size or pair.settings.batch, pair.reader(), pair.settings.seed
    groups = [pair.prompts[at : at + size] for at in range(0, size * pair.settings.groups, size)]
    groups = [group for group in groups if len(group) == size]
    if len(groups) < 2:
        raise SkippedError(f"{len(pair.prompts)} prompts are less than two batches of {size}")
    totals = [[0.0] * 4 for _ in groups]

    def write(group: Sequence[Prompt]) -> int:
        noise = Noise(seed, [prompt.request for prompt in group], reader.device)
        done = autoregressive(reader, [prompt.ids for prompt in group], Sampling(), pair.limits, noise)
        return sum(len(one.tokens) for one in done)

    def timed(parts: Sequence[Sequence[Prompt]], into: list[float], at: int) -> None:
        begun_s = time.perf_counter()
        tokens = sum(write(part) for part in parts)
        into[at] += time.perf_counter() - begun_s
        into[at + 1] += tokens

    write(groups[0]), write(groups[0][:1])
    for repeat in range(pair.settings.batch_repeats):
        for place, group in enumerate(groups):
            arms = [([[prompt] for prompt in group], 0), ([group], 2)]
            for parts, at in arms if (repeat + place) % 2 == 0 else arms[::-1]:
                timed(parts, totals[place], at)
    ratio = speedup([(a, b, c, d) for a, b, c, d in totals])
    one_by_one = sum(total[1] for total in totals) / sum(total[0] for total in totals)
    yield row(
        f"batch {size} / batch 1, tokens a second, the target alone",
        pair.name,
        ratio,
        (">=", least) if least is not None else None,
        tokens_per_s_alone=one_by_one,
        tokens_per_s_batch=sum(total[3] for total in totals) / sum(total[2] for total in totals),
        prompts=size * len(groups),
    )
