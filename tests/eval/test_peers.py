"""Peers are the real `transformers.generate` on tiny random models."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version

import pytest
import torch
from packaging.version import parse
from transformers import PreTrainedModel

from eval import peers
from eval.measurement import acceptance
from eval.peers import Match, Peer, Timings
from eval.suites import Prompt
from factory.decoding.compiled import why_no_compiler
from factory.decoding.decoder import Generation, Limits
from factory.decoding.drafters import ModelDrafter
from factory.decoding.pace import SteadyPace
from factory.decoding.readers import open_reader
from factory.decoding.sampling import Sampling

ALONE = "DRAFTER_TEST_ALONE"
GREEDY = Sampling()
PROMPTS = [Prompt(0, [5, 6, 7, 8, 6, 7]), Prompt(3, [40, 41, 42]), Prompt(4, list(range(20, 31)))]


def off(model: PreTrainedModel, scale: float = 0.03) -> PreTrainedModel:
    """A drafter that is right sometimes: the model, its weights a little off."""
    made = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in made.parameters():
            weight += scale * torch.randn(weight.shape, dtype=weight.dtype, generator=generator)
    return made


def match_of(target: PreTrainedModel, *, k: int = 3, eos: frozenset[int] = frozenset(), new: int = 24) -> Match:
    return Match(target, off(target), k, Limits(new, eos, 160))


def skip_what_transformers_cannot_crop(model: PreTrainedModel) -> None:
    if getattr(model.config, "sliding_window", None) and parse(version("transformers")) < parse("5.23"):
        pytest.skip("its assisted generation fails behind a sliding window before 5.23: the mask outgrows the cache")


def by_name(match: Match) -> dict[str, peers.Contestant]:
    drafter = open_reader(match.drafter) if match.drafter is not None else None
    return {one.name: one for one in (*peers.ours(match, open_reader(match.target), drafter), *peers.peers(match))}


def test_all_contestants_write_the_same_greedy_tokens(tiny: Callable[..., PreTrainedModel]) -> None:
    target = tiny(layers=2, vocabulary=300, seed=1)
    skip_what_transformers_cannot_crop(target)
    match = match_of(target)
    field = by_name(match)
    assert len(field) == 6
    found = peers.contest(list(field.values()), PROMPTS, GREEDY, repeats=2)

    reference = [output.tokens for output in found[peers.OURS].outputs]
    assert [len(tokens) for tokens in reference] == [24, 24, 24]
    assert len({token for tokens in reference for token in tokens}) >= 15
    same = peers.compare(match, open_reader(match.target), found)
    assert set(same) == set(field) - {peers.OURS}
    assert all(audit.passed and audit.divergences == 0 and audit.bound is None for audit in same.values())
    for name, one in found.items():
        assert [output.tokens for output in one.outputs] == reference
        assert one.new_tokens == 2 * sum(map(len, reference))  # both repeats; prompts are not counted
        assert len(one.totals) == len(PROMPTS) and all(seconds > 0 for seconds, _ in one.totals)
        assert bool(one.rounds) == field[name].drafts


def test_assisted_generation_proposes_and_accepts_what_ours_does(tiny: Callable[..., PreTrainedModel]) -> None:
    """Same k, same drafter: only in the first round, which reads the prompt as well, the two differ."""
    match = match_of(tiny(layers=2, vocabulary=300, seed=1), k=4)
    skip_what_transformers_cannot_crop(match.target)
    field = by_name(match)
    for prompt in PROMPTS:
        mine = field[peers.OURS_DRAFTED].watched(prompt, GREEDY)
        theirs = field[peers.ASSISTED].watched(prompt, GREEDY)
        assert theirs.tokens == mine.tokens
        written = [sum(theirs.accepted[:at]) + at for at in range(theirs.target_passes)]
        assert theirs.proposed == [min(4, 24 - before - 1) for before in written]  # no threshold cuts a draft short
        assert theirs.target_passes == len(theirs.accepted) == len(theirs.proposed)
        assert sum(theirs.accepted) + theirs.target_passes == len(theirs.tokens)
        assert sum(mine.accepted) + mine.target_passes == len(mine.tokens)
    counts = [
        acceptance([field[name].watched(prompt, GREEDY) for prompt in PROMPTS])
        for name in (peers.OURS_DRAFTED, peers.ASSISTED)
    ]
    assert all(one.alpha is not None and 0.2 < one.alpha < 1 for one in counts)


def test_a_pace_decides_k_in_place_of_the_matchs(families: dict[str, Callable[..., PreTrainedModel]]) -> None:
    match = match_of(families["llama"](layers=2, vocabulary=300, seed=1), k=4)
    assert match.drafter is not None
    reader, drafter = open_reader(match.target), ModelDrafter(open_reader(match.drafter))
    paced = peers.Ours("paced", match, reader, drafter, SteadyPace(2)).watched(PROMPTS[0], GREEDY)
    steady = peers.Ours("steady", match, reader, drafter).watched(PROMPTS[0], GREEDY)
    assert paced.tokens == steady.tokens
    assert (max(paced.proposed), max(steady.proposed)) == (2, 4)


def test_a_drafter_that_is_the_target_is_accepted_in_full(families: dict[str, Callable[..., PreTrainedModel]]) -> None:
    target = families["llama"](layers=2, vocabulary=300, seed=1)
    match = Match(target, copy.deepcopy(target), 3, Limits(25, frozenset(), 160))
    for name in (peers.OURS_DRAFTED, peers.ASSISTED):
        written = by_name(match)[name].watched(PROMPTS[0], GREEDY)
        assert written.accepted == written.proposed and set(written.proposed[:-2]) == {3}


def test_eos_is_what_the_limits_say_and_no_models_own(families: dict[str, Callable[..., PreTrainedModel]]) -> None:
    target = families["llama"](layers=2, vocabulary=300, seed=1)
    free = by_name(match_of(target))[peers.OURS].write(PROMPTS[0], GREEDY).tokens
    first = next(at for at in range(6, 24) if free[at] not in free[:at])
    ends = frozenset({free[first], 299 if 299 not in free else 298})
    match = match_of(target, eos=ends)
    for one in by_name(match).values():
        assert one.write(PROMPTS[0], GREEDY).tokens == free[: first + 1]
        assert one.watched(PROMPTS[0], GREEDY).tokens == free[: first + 1]

    target.generation_config.eos_token_id = free[first]  # the model says so, the limits do not
    for one in by_name(match_of(target)).values():
        assert one.write(PROMPTS[0], GREEDY).tokens == free
    assert target.generation_config.eos_token_id == free[first]


def test_an_accepted_eos_ends_what_was_examined(families: dict[str, Callable[..., PreTrainedModel]]) -> None:
    target = families["llama"](layers=2, vocabulary=300, seed=1)
    free = by_name(match_of(target))[peers.OURS].write(PROMPTS[0], GREEDY).tokens
    at = next(at for at in range(5, 24) if free[at] not in free[:at])
    match = Match(target, copy.deepcopy(target), 4, Limits(24, frozenset({free[at]}), 160))
    written = by_name(match)[peers.ASSISTED].watched(PROMPTS[0], GREEDY)
    assert written.tokens == free[: at + 1]
    assert written.accepted == written.proposed and acceptance([written]).alpha == 1


def test_guesses_behind_the_last_token_were_examined_by_nobody(
    families: dict[str, Callable[..., PreTrainedModel]],
) -> None:
    """transformers' lookup proposes k tokens also where fewer may be written; ours proposes fewer."""
    target = families["llama"](layers=1, tie_word_embeddings=True)
    with torch.no_grad():  # layers that add nothing: it says the prompt's last token for ever
        target.model.layers[0].self_attn.o_proj.weight.zero_()
        target.model.layers[0].mlp.down_proj.weight.zero_()
    match = match_of(target, k=5, new=22)
    field = by_name(match)
    theirs, mine = (field[name].watched(PROMPTS[0], GREEDY) for name in (peers.LOOKUP, peers.OURS_LOOKUP))
    assert theirs.tokens == mine.tokens == [7] * 22
    assert theirs.accepted[2:] == theirs.proposed[2:] and max(theirs.proposed) == 5


def test_sampling_is_repeatable_and_leaves_the_global_generator_alone(
    families: dict[str, Callable[..., PreTrainedModel]],
) -> None:
    match = match_of(families["llama"](layers=2, vocabulary=300, seed=1))
    field = list(by_name(match).values())
    torch.manual_seed(11)
    state = torch.get_rng_state()
    runs = [peers.contest(field, PROMPTS, Sampling(temperature=1.0), repeats=1, seed=seed) for seed in (7, 7, 8)]
    assert torch.equal(torch.get_rng_state(), state)
    written = [{name: [o.tokens for o in one.outputs] for name, one in run.items()} for run in runs]
    assert written[0] == written[1]
    for name in (peers.GENERATE, peers.ASSISTED, peers.LOOKUP):
        assert written[0][name] != written[2][name]  # the seed decides
        assert written[0][name] != written[0][peers.OURS]  # and it is really sampled: greedy would be the same
        assert len({tuple(tokens) for tokens in written[0][name]}) == len(PROMPTS)


def test_top_k_of_one_is_greedy_for_all_and_fifty_is_nobodys_default(
    families: dict[str, Callable[..., PreTrainedModel]],
) -> None:
    match = match_of(families["llama"](layers=2, vocabulary=300, seed=1))
    field = by_name(match)
    greedy = field[peers.OURS].write(PROMPTS[1], GREEDY).tokens
    assert all(one.write(PROMPTS[1], Sampling(1.0, top_k=1)).tokens == greedy for one in field.values())

    flat = Sampling(temperature=10.0)  # nearly uniform over 300 tokens
    written = [field[peers.GENERATE].write(prompt, flat).tokens for prompt in PROMPTS * 8]
    with torch.no_grad():
        logits = match.target(input_ids=torch.tensor([PROMPTS[0].ids])).logits[0, -1]
    likely = set(logits.topk(50).indices.tolist())
    assert any(tokens[0] not in likely for tokens in written[::3])


def test_no_output_is_longer_than_the_context(families: dict[str, Callable[..., PreTrainedModel]]) -> None:
    match = Match(families["gpt2"](layers=2), None, 3, Limits(64, frozenset(), 40))
    field = by_name(match)
    assert peers.ASSISTED not in field and peers.OURS_DRAFTED not in field
    assert {len(one.write(PROMPTS[2], GREEDY).tokens) for one in field.values()} == {40 - len(PROMPTS[2].ids)}


def test_a_peer_changes_nothing_of_the_target(families: dict[str, Callable[..., PreTrainedModel]]) -> None:
    target = families["llama"](layers=2, vocabulary=300, seed=1)
    before = dict(target.__dict__), target.generation_config.to_dict()
    peer = next(one for one in peers.peers(match_of(target)) if one.name == peers.ASSISTED)
    peer.watched(PROMPTS[0], GREEDY)
    assert {key: id(value) for key, value in target.__dict__.items()} == {k: id(v) for k, v in before[0].items()}
    assert target.generation_config.to_dict() == before[1]


def test_a_wrong_output_does_not_pass(families: dict[str, Callable[..., PreTrainedModel]]) -> None:
    for dtype in (torch.float64, torch.float32):
        match = match_of(families["llama"](layers=2, vocabulary=300, seed=1, dtype=dtype))
        found = peers.contest(list(by_name(match).values()), PROMPTS, GREEDY, repeats=1)
        found[peers.GENERATE].outputs[1].tokens[4] += 1
        same = peers.compare(match, open_reader(match.target), found)
        assert not same[peers.GENERATE].passed and same[peers.GENERATE].divergences == 1
        assert same[peers.LOOKUP].passed
        bound = same[peers.LOOKUP].bound
        assert bound is None if dtype == torch.float64 else bound is not None and 0 < bound < 0.1


def test_the_ratio_is_of_totals_and_paired() -> None:
    fast = Timings("fast", totals=[[1.0, 10.0], [3.0, 10.0]])
    slow = Timings("slow", totals=[[2.0, 10.0], [6.0, 5.0]])
    ratio = peers.faster(fast, slow)
    assert ratio.value == pytest.approx((8 / 15) / (4 / 20))
    assert ratio.low is not None and ratio.high is not None and ratio.low <= ratio.value <= ratio.high
    assert (fast.new_tokens, fast.tokens_per_s) == (20, 5.0)


def test_a_row_has_what_a_table_needs() -> None:
    rounds = [Generation([1], [2, 3, 4, 5], target_passes=2, accepted=[2, 0], proposed=[2, 2])]
    one = Timings("peer", totals=[[2.0, 4.0]], rounds=rounds)
    row = peers.figures(one, peers.faster(one, one), None)
    assert row == {
        "contestant": "peer",
        "tokens_per_s": 2.0,
        "new_tokens": 4,
        "speedup": 1.0,
        "low": None,
        "high": None,
        "alpha": pytest.approx(2 / 3),
        "tau": 2.0,
        "outputs": None,
    }
    alone = peers.figures(Timings("alone", totals=[[2.0, 4.0]]), peers.faster(one, one), None)
    assert alone["alpha"] is None and alone["tau"] is None


@pytest.mark.slow
@pytest.mark.skipif(why_no_compiler() is not None, reason=str(why_no_compiler()))
def test_the_compiled_peer_is_compiled_once_and_writes_the_same(
    families: dict[str, Callable[..., PreTrainedModel]], request: pytest.FixtureRequest
) -> None:
    if ALONE not in os.environ:  # in a process of its own: what other tests had compiled is no part of it
        command = [sys.executable, "-m", "pytest", f"{__file__}::{request.node.name}"]
        done = subprocess.run(command, env={**os.environ, ALONE: "1"}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        return
    target = families["llama"](layers=2, vocabulary=300, seed=1)
    match = match_of(target)
    torch._dynamo.reset()
    peer, compile_s = peers.compiled(match, PROMPTS)
    assert isinstance(peer, Peer) and compile_s > 0
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs >= 1
    alone = by_name(match)[peers.OURS]
    for prompt in PROMPTS:
        assert peer.write(prompt, GREEDY).tokens == alone.write(prompt, GREEDY).tokens
    found = peers.contest([alone, peer], PROMPTS, GREEDY, repeats=1)
    assert [one.tokens for one in found[peers.COMPILED].outputs] == [one.tokens for one in found[peers.OURS].outputs]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs  # shorter prompts compile nothing
    assert "_compiled_call" not in target.__dict__
