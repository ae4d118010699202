"""The same pair and the same prompts through `transformers.generate`, interleaved with ours.

A peer is given what our decoder is given: the very weights, the prompt as token ids, k, temperature,
top-k, top-p, the EOS ids and the number of new tokens. transformers takes some of that from places of
its own, and would fill in what is not said, so all of it is said (read in 5.17 and 5.23):

- k of `assistant_model=` is `num_assistant_tokens` of the *assistant's* generation config, kept
  constant; its confidence threshold, 0.4 by default, would end a draft early and is set to 0.
- what a call leaves open comes from the model's generation config, `top_k` 50 and EOS among it. A
  peer therefore runs a shallow copy of the model with a config of its own; the weights are shared.
- `cache_implementation="static"` compiles by itself on CUDA (CUDA graphs among it, as its own default has it), and on
  a CPU only when told so; each new cache length compiles again, so the longest prompt goes first. Assisted generation
  refuses static caches (#32946).
- prompt lookup takes n-grams of up to 2 tokens by default, and is given our 3. It takes the first
  match, ours the latest.

Sampled, a peer's tokens are others than ours, and assisted generation's are not the target's in law
either (#47932): only seconds a token are compared. Greedy outputs are compared token by token.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import CompileConfig, GenerationConfig, PreTrainedModel

from eval.measurement import acceptance
from eval.parity import Audit, audit, forced_logits
from eval.suites import Prompt
from eval.timing.bench import Stopwatch
from eval.verdict.stats import Interval, speedup
from factory.decoding.decoder import Generation, Limits, autoregressive, speculative
from factory.decoding.drafters import Drafter, ModelDrafter, PromptLookup
from factory.decoding.pace import Pace
from factory.decoding.reader import Reader
from factory.decoding.readers import open_reader
from factory.decoding.sampling import Noise, Sampling

OURS, OURS_DRAFTED, OURS_LOOKUP = "ours", "ours, drafter", "ours, prompt lookup"
GENERATE, COMPILED = "generate", "generate, static cache, compiled"
ASSISTED, LOOKUP = "generate, assistant_model", "generate, prompt_lookup_num_tokens"
MAX_NGRAM = 3  # tokens of the longest match of prompt lookup, ours and theirs
WARM_UP = 2  # prompts
PROBES = 4  # outputs on which rounding is measured

Told = Callable[[str], None]


@dataclass(frozen=True)
class Match:
    """What every contestant is given. `limits.eos` alone says which tokens end a text, whatever the models say."""

    target: PreTrainedModel
    drafter: PreTrainedModel | None
    k: int
    limits: Limits
    seed: int = 0


class Contestant(Protocol):
    """One way of writing, ours or a peer's."""

    name: str
    drafts: bool
    device: torch.device

    def write(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """What is timed: from token ids in to token ids out."""

    def watched(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """The same output with its rounds, of a contestant that drafts; never timed."""


class Ours:
    """Our decoder, with or without a drafter."""

    def __init__(
        self, name: str, match: Match, target: Reader, drafter: Drafter | None = None, pace: Pace | None = None
    ) -> None:
        """`pace` decides k in place of the match's; what it learns stays from output to output."""
        self.name, self.drafts, self.device = name, drafter is not None, target.device
        self.reader = target
        self._match, self._drafter = match, drafter
        self._k: int | Pace = match.k if pace is None else pace

    def write(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Keyed by (seed, request), as everywhere."""
        noise = Noise(self._match.seed, [prompt.request], self.device)
        given = (sampling, self._match.limits, noise)
        if self._drafter is None:
            return autoregressive(self.reader, [prompt.ids], *given)[0]
        return speculative(self.reader, self._drafter, [prompt.ids], self._k, *given)[0]

    watched = write


class Peer:
    """`transformers.generate`, one way of it. `kwargs` go to `generate` with each call, `settings` into its config."""

    def __init__(
        self,
        name: str,
        match: Match,
        *,
        drafts: bool = False,
        settings: Mapping[str, Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.drafts, self.device = name, drafts, match.target.device
        self._limits = match.limits
        self._settings, self._kwargs = dict(settings or {}), dict(kwargs or {})
        self._model = own_config(match.target)

    def write(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Tokens only; `target_passes` and the rounds are for `watched`. Draws from torch's global generator."""
        return self._write(self._model, prompt, sampling)

    def watched(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Each pass of the target seen, its guesses read off its input.

        The first pass reads the prompt and the first guesses together, so unlike ours it is a round.
        """
        seen = _Watch(len(prompt.ids))
        written = self._write(seen.over(self._model), prompt, sampling, streamer=seen)
        return seen.told(written, self._limits.eos)

    def _write(self, model: PreTrainedModel, prompt: Prompt, sampling: Sampling, **more: Any) -> Generation:
        limits = self._limits
        ids = torch.tensor([prompt.ids], device=model.device)
        config = GenerationConfig(
            max_new_tokens=min(limits.max_new_tokens, limits.context - len(prompt.ids)),
            eos_token_id=sorted(limits.eos) or None,
            pad_token_id=min(limits.eos, default=0),
            **_sampler(sampling),
            **self._settings,
        )
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=config, **self._kwargs, **more
        )
        return Generation(prompt.ids, output[0, len(prompt.ids) :].tolist())


def own_config(model: PreTrainedModel, **settings: Any) -> PreTrainedModel:
    """The same weights as another model object, whose generation config says `settings` and nothing else."""
    made = copy.copy(model)
    made.generation_config = GenerationConfig(**settings)
    return made


def _sampler(sampling: Sampling) -> dict[str, Any]:
    """Our sampling in transformers' words; off is said too, since what is left out gets a default."""
    if sampling.greedy:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
    }


class _Watch:
    """Looks over a peer's shoulder: the target's inputs, and what the streamer is handed."""

    def __init__(self, prompt_length: int) -> None:
        self._fresh = prompt_length  # tokens of the next pass that are no guesses
        self._guesses: list[list[int]] = []  # by pass
        self._runs: list[list[int]] = []  # by call of the streamer; the first is the prompt

    def over(self, model: PreTrainedModel) -> PreTrainedModel:
        """A copy of the model object whose passes are seen."""
        made, forward = copy.copy(model), model.forward

        @functools.wraps(forward)
        def seen(*args: Any, **inputs: Any) -> Any:
            self._guesses.append(inputs["input_ids"][0, self._fresh :].tolist())
            self._fresh = 1
            return forward(*args, **inputs)

        made.forward = seen
        return made

    def put(self, tokens: torch.Tensor) -> None:
        """Streamer: one round's tokens."""
        self._runs.append(tokens.flatten().tolist())

    def end(self) -> None:
        """Streamer: nothing more comes."""

    def told(self, written: Generation, eos: frozenset[int]) -> Generation:
        """With its rounds, counted as `Generation` says: what stands behind an accepted EOS was examined by nobody."""
        written.target_passes = len(self._guesses)
        for guesses, run in zip(self._guesses, self._runs[1:], strict=True):
            same = [guess == token for guess, token in zip(guesses, run, strict=False)]
            standing = same.index(False) if False in same else len(same)
            written.accepted.append(standing)
            written.proposed.append(standing if standing == len(run) else len(guesses))
        return written


def ours(match: Match, target: Reader, drafter: Reader | None) -> list[Ours]:
    """The target alone, with its drafter where there is one, with prompt lookup: all on one reader of the target."""
    lookup = PromptLookup(MAX_NGRAM, vocabulary=target.vocabulary, device=target.device)
    found = [Ours(OURS, match, target), Ours(OURS_LOOKUP, match, target, lookup)]
    if drafter is not None:
        found.append(Ours(OURS_DRAFTED, match, target, ModelDrafter(drafter)))
    return found


def peers(match: Match) -> list[Peer]:
    """Every way of `generate` that needs no compiler. Without a drafter `assistant_model` takes no part."""
    lookup = {"prompt_lookup_num_tokens": match.k, "max_matching_ngram_size": MAX_NGRAM}
    found = [Peer(GENERATE, match), Peer(LOOKUP, match, drafts=True, settings=lookup)]
    if match.drafter is not None:
        assistant = own_config(
            match.drafter,
            num_assistant_tokens=match.k,
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=0.0,
        )
        found.append(Peer(ASSISTED, match, drafts=True, kwargs={"assistant_model": assistant}))
    return found


def compiled(match: Match, prompts: Sequence[Prompt]) -> tuple[Peer, float]:
    """The peer with a static cache, compiled, and the seconds that the first output took: compilation, mostly.

    `prompts` are those that it will be given: the longest one decides the cache's length. Raises what
    torch.compile raises.
    """
    settings: dict[str, Any] = {"cache_implementation": "static"}
    if match.target.device.type == "cpu":
        settings["compile_config"] = how = CompileConfig(mode="default")
        how._compile_all_devices = True  # else a CPU's forward pass stays as it is
    peer = Peer(COMPILED, match, settings=settings)
    watch = Stopwatch(str(match.target.device))
    begun_s = watch.now_s()
    peer.write(max(prompts, key=lambda prompt: len(prompt.ids)), Sampling())
    return peer, watch.now_s() - begun_s


@dataclass
class Timings:
    """What one contestant wrote, and how long it took."""

    name: str
    outputs: list[Generation] = field(default_factory=list)  # of the first repeat, prompt by prompt
    totals: list[list[float]] = field(default_factory=list)  # [prompts][seconds, new tokens], all repeats together
    rounds: list[Generation] = field(default_factory=list)  # those that draft: what `watched` saw

    @property
    def new_tokens(self) -> int:
        """Of all repeats; prompts are not counted."""
        return round(sum(tokens for _, tokens in self.totals))

    @property
    def tokens_per_s(self) -> float:
        """From prompt in to last token out."""
        return self.new_tokens / sum(seconds for seconds, _ in self.totals)


def contest(
    contestants: Sequence[Contestant],
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    repeats: int,
    seed: int = 0,
    told: Told = lambda _: None,
) -> dict[str, Timings]:
    """Time all contestants in one run, by name.

    On each prompt every one takes its turn, and who goes first rotates, so that a machine that slows
    down slows all. New tokens are counted in one place, here. torch's global generator is set for each
    output from (seed, request) and put back afterwards.
    """
    watch = Stopwatch(str(contestants[0].device))
    found = {one.name: Timings(one.name, totals=[[0.0, 0.0] for _ in prompts]) for one in contestants}
    with torch.random.fork_rng():
        for one in contestants:
            for prompt in prompts if one.drafts else prompts[:WARM_UP]:
                _reseed(seed, prompt)
                if one.drafts:
                    found[one.name].rounds.append(one.watched(prompt, sampling))
                else:
                    one.write(prompt, sampling)
        for repeat in range(repeats):
            for place, prompt in enumerate(prompts):
                first = (repeat + place) % len(contestants)
                for one in (*contestants[first:], *contestants[:first]):
                    _reseed(seed, prompt)
                    begun_s = watch.now_s()
                    written = one.write(prompt, sampling)
                    taken_s = watch.now_s() - begun_s
                    mine = found[one.name]
                    mine.totals[place][0] += taken_s
                    mine.totals[place][1] += len(written.tokens)
                    if repeat == 0:
                        mine.outputs.append(written)
                    told(one.name)
    return found


def faster(arm: Timings, base: Timings, seed: int = 0) -> Interval:
    """How many times as fast `arm` is as `base`: ratio of totals, seconds a new token, paired over prompts."""
    return speedup([(*b, *a) for b, a in zip(base.totals, arm.totals, strict=True)], seed)  # type: ignore[misc]


def tie_bound(match: Match, reader: Reader, outputs: Sequence[Generation]) -> float | None:
    """How far two logits may lie apart and still be exchanged by rounding; None in float64: nothing is excused.

    Twice the largest difference between a one-row pass of our `reader` and each other way in which a
    contestant runs the target: our k + 1 rows, and transformers' own modules with one row and with
    k + 1. 0 where that is as large as the logits' own spread: then it is a fault, not rounding.
    """
    if match.target.dtype == torch.float64:
        return None
    plain = open_reader(match.target, "eager")
    moved, spread = 0.0, torch.inf
    for probe in [output for output in outputs if len(output.tokens) > 1][:PROBES]:
        single = forced_logits(reader, probe.prompt, probe.tokens, 1)  # [T, V]
        spread = min(spread, float(single.std(dim=-1).mean()))
        for other, rows in ((reader, match.k + 1), (plain, 1), (plain, match.k + 1)):
            moved = max(moved, float((forced_logits(other, probe.prompt, probe.tokens, rows) - single).abs().max()))
    return 2 * moved if 2 * moved < spread else 0.0


def compare(match: Match, reader: Reader, found: Mapping[str, Timings], base: str = OURS) -> dict[str, Audit]:
    """Greedy outputs of everybody against `base`'s, token by token; a difference passes only as a near-tie."""
    outputs = found[base].outputs
    bound = tie_bound(match, reader, outputs)
    return {name: audit(reader, outputs, one.outputs, bound) for name, one in found.items() if name != base}


def figures(one: Timings, ratio: Interval, same: Audit | None) -> dict[str, Any]:
    """One contestant's row. `same` is None where outputs cannot be compared: sampled ones, or the base's own."""
    counts = acceptance(one.rounds)
    passes = sum(output.target_passes for output in one.rounds)
    return {
        "contestant": one.name,
        "tokens_per_s": one.tokens_per_s,
        "new_tokens": one.new_tokens,
        "speedup": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "alpha": counts.alpha,
        "tau": sum(len(output.tokens) for output in one.rounds) / passes if passes else None,
        "outputs": same.facts() if same else None,
    }


def _reseed(seed: int, prompt: Prompt) -> None:
    torch.manual_seed(seed * 1_000_003 + prompt.request)
