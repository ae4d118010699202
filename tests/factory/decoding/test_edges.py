from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from factory.decoding.decoder import Generation, Limits, Round, autoregressive, speculative
from factory.decoding.drafters import Drafter, ModelDrafter, PromptLookup
from factory.decoding.eager import EagerReader
from factory.decoding.rejection import Draft
from factory.decoding.sampler import Sampler
from factory.decoding.sampling import Noise, Sampling
from factory.errors import DataError, UnsupportedModel


@pytest.fixture(params=["gpt2", "llama"])
def tiny(request: pytest.FixtureRequest, families: dict[str, Callable[..., PreTrainedModel]]) -> Any:
    """What is tested here is the loop's, not a family's: two kinds of positions are enough."""
    return families[request.param]


GREEDY = Sampling()
PROMPT = [7, 8, 9, 10]
NOISE = Noise(0, [0])


def decode(
    target: PreTrainedModel, drafter: Drafter, k: int, limits: Limits, prompt: list[int] | None = None
) -> Generation:
    """Speculative greedy text, which has to be what plain decoding writes within the same limits."""
    prompts = [prompt or PROMPT]
    (fast,) = speculative(EagerReader(target), drafter, prompts, k, GREEDY, limits, NOISE)
    (plain,) = autoregressive(EagerReader(target), prompts, GREEDY, limits, NOISE)
    assert fast.tokens == plain.tokens
    assert plain.target_passes == len(plain.tokens)
    assert fast.target_passes == 1 + len(fast.accepted) == 1 + len(fast.proposed)
    return fast


def test_text_ends_at_eos(
    target: PreTrainedModel,
    reference: Callable[..., list[int]],
    script: type,
    ending: tuple[int, list[int], list[int], list[int]],
) -> None:
    place, wrong, accepted, proposed = ending
    text = reference(target, PROMPT, 20)
    assert len(set(text[:9])) == 9
    limits = Limits(max_new_tokens=20, eos=frozenset({text[place]}), context=160)
    made = decode(target, script([text], wrong, 300), 4, limits)
    assert made.tokens == text[: place + 1]
    assert (made.accepted, made.proposed) == (accepted, proposed)


def test_the_first_of_several_eos_ids_ends_the_text(
    target: PreTrainedModel, reference: Callable[..., list[int]], script: type
) -> None:
    text = reference(target, PROMPT, 20)
    limits = Limits(max_new_tokens=20, eos=frozenset({text[4], text[2], text[9]}), context=160)
    made = decode(target, script([text], [], 300), 6, limits)
    assert made.tokens == text[:3]
    assert (made.accepted, made.proposed) == ([2], [2])


def test_rows_of_one_batch_end_at_different_eos_ids(
    target: PreTrainedModel, reference: Callable[..., list[int]], script: type
) -> None:
    """One at the draft's last guess, one at a correction, one at a bonus, one at nothing."""
    written = [([first, 9, 8], reference(target, [first, 9, 8], 20)) for first in range(20, 32)]

    def apart(texts: Sequence[list[int]]) -> bool:
        """None of the three that end is met before its place."""
        ends = {texts[0][4], texts[1][2], texts[2][5]}  # the prefill writes token 0, so tokens 1 to 4 are guesses
        before = {*texts[0][:4], *texts[1][:2], *texts[2][:5], *texts[3]}
        return len(ends) == 3 and not ends & before

    chosen = next(four for four in itertools.permutations(written, 4) if apart([text for _, text in four]))
    prompts, texts = [prompt for prompt, _ in chosen], [text for _, text in chosen]
    eos = frozenset({texts[0][4], texts[1][2], texts[2][5]})
    limits, noise = Limits(max_new_tokens=20, eos=eos, context=160), Noise(0, range(4))
    wrong_at_2 = [
        text if number != 1 else [*text[:2], (text[2] + 1) % 300, *text[3:]] for number, text in enumerate(texts)
    ]
    made = speculative(EagerReader(target), script(wrong_at_2, [], 300), prompts, 4, GREEDY, limits, noise)
    assert [row.tokens for row in made] == [texts[0][:5], texts[1][:3], texts[2][:6], texts[3]]
    assert [(row.accepted, row.proposed) for row in made[:3]] == [([4], [4]), ([1], [4]), ([4], [4])]
    plain = autoregressive(EagerReader(target), prompts, GREEDY, limits, noise)
    assert [row.tokens for row in plain] == [row.tokens for row in made]


def test_an_eos_that_was_only_guessed_ends_nothing(
    target: PreTrainedModel, reference: Callable[..., list[int]], script: type
) -> None:
    text = reference(target, PROMPT, 20)
    guessed = (text[3] + 1) % 300
    assert guessed not in text
    limits = Limits(max_new_tokens=20, eos=frozenset({guessed}), context=160)
    made = decode(target, script([text], [3], 300), 4, limits)
    assert made.tokens == text
    assert made.accepted[0] == 2


def relabelled(model: PreTrainedModel, token: int) -> PreTrainedModel:
    """The same model with the names of `token` and 0 exchanged."""
    made = copy.deepcopy(model)
    tables = {id(part.weight): part.weight for part in (made.get_input_embeddings(), made.get_output_embeddings())}
    with torch.no_grad():
        for table in tables.values():
            table[[0, token]] = table[[token, 0]]
    return made


def test_token_0_is_a_token_like_any_other(target: PreTrainedModel, reference: Callable[..., list[int]]) -> None:
    common = reference(target, PROMPT, 20)[6]
    model = relabelled(target, common)
    text = reference(model, PROMPT, 20)
    assert text.index(0) == 6
    free = Limits(max_new_tokens=20, eos=frozenset(), context=160)
    ending = Limits(max_new_tokens=20, eos=frozenset({0}), context=160)
    for k in (3, 5, 6):
        for drafter in (ModelDrafter(EagerReader(model)), PromptLookup(vocabulary=300)):
            assert decode(model, drafter, k, free).tokens == text
            assert decode(model, drafter, k, ending).tokens == text[:7]


@pytest.mark.parametrize("prompt", [[0], [17]])
def test_a_prompt_of_one_token(target: PreTrainedModel, reference: Callable[..., list[int]], prompt: list[int]) -> None:
    limits = Limits(max_new_tokens=20, eos=frozenset(), context=160)
    text = reference(target, prompt, 20)
    assert decode(target, ModelDrafter(EagerReader(target)), 3, limits, prompt).tokens == text
    assert decode(target, PromptLookup(vocabulary=300), 3, limits, prompt).tokens == text


@pytest.mark.parametrize(
    ("left", "proposed"), [(1, []), (2, [0]), (3, [1]), (4, [2]), (10, [8]), (11, [8, 0]), (12, [8, 1])]
)
def test_prompt_and_text_fill_the_context_and_no_more(
    tiny: Callable[..., PreTrainedModel], reference: Callable[..., list[int]], left: int, proposed: list[int]
) -> None:
    model = tiny(layers=2, vocabulary=300, seed=1, context=40)
    prompt = list(range(60, 100 - left))
    limits = Limits(max_new_tokens=100, eos=frozenset(), context=40)
    text = reference(model, prompt, left)
    made = decode(model, ModelDrafter(EagerReader(model)), 8, limits, prompt)
    assert made.tokens == text
    assert made.accepted == made.proposed == proposed
    assert decode(model, PromptLookup(vocabulary=300), 8, limits, prompt).tokens == text


@pytest.mark.parametrize("k", [1, 3, 4])
def test_exactly_max_new_tokens_are_written(
    target: PreTrainedModel, reference: Callable[..., list[int]], script: type, k: int
) -> None:
    text = reference(target, PROMPT, 30)
    for most in range(1, 13):
        limits = Limits(max_new_tokens=most, eos=frozenset(), context=160)
        oracle = script([text], [], 300)
        made = decode(target, oracle, k, limits)
        assert made.tokens == text[:most]
        rounds, rest = divmod(most - 1, k + 1)
        assert made.accepted == [k] * rounds + [rest - 1] * (rest > 0)
        assert oracle.asked == [guesses for guesses in made.proposed if guesses]  # never asked for nothing
        decode(target, script([text], [2, 3, 7], 300), k, limits)


def test_a_row_near_its_end_is_offered_less_than_the_others(
    tiny: Callable[..., PreTrainedModel], reference: Callable[..., list[int]]
) -> None:
    model = tiny(layers=2, vocabulary=300, seed=1, context=37)
    prompts = [PROMPT, list(range(60, 90))]
    limits = Limits(max_new_tokens=12, eos=frozenset(), context=37)
    drafter = ModelDrafter(EagerReader(model))
    long, short = speculative(EagerReader(model), drafter, prompts, 8, GREEDY, limits, Noise(0, [0, 1]))
    assert long.tokens == reference(model, prompts[0], 12)
    assert short.tokens == reference(model, prompts[1], 7)
    assert long.proposed == [8, 1]
    assert short.proposed == [5]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0)])
def test_a_drafter_with_a_short_context_falls_silent(
    target: PreTrainedModel, tiny: Callable[..., PreTrainedModel], sampling: Sampling
) -> None:
    """One prompt is too long for it from the start, one outgrows it, and all are still the target's own text."""
    prompts = [list(range(60, 90)), PROMPT, [3]]
    limits = Limits(max_new_tokens=24, eos=frozenset(), context=160)
    small = tiny(layers=1, vocabulary=300, seed=1, context=20)
    noise = Noise(0, range(3))
    made = speculative(EagerReader(target), ModelDrafter(EagerReader(small)), prompts, 3, sampling, limits, noise)
    plain = autoregressive(EagerReader(target), prompts, sampling, limits, noise)
    assert sum(made[0].proposed) == 0
    assert made[0].tokens == plain[0].tokens
    for row in made[1:]:
        assert row.proposed[0] == 3
        assert row.proposed[-1] == 0
    if sampling.greedy:
        assert [row.tokens for row in made] == [row.tokens for row in plain]


def test_what_does_not_fit_is_named(target: PreTrainedModel, tiny: Callable[..., PreTrainedModel]) -> None:
    limits = Limits(max_new_tokens=5, eos=frozenset(), context=40)
    reader, two = EagerReader(target), Noise(0, [0, 1])
    with pytest.raises(DataError, match="prompt 2 has no tokens"):
        autoregressive(reader, [[1], []], GREEDY, limits, two)
    with pytest.raises(DataError, match="prompt 2 has 40 tokens, which leaves no room in a context of 40"):
        speculative(reader, PromptLookup(vocabulary=300), [[1], [1] * 40], 2, GREEDY, limits, two)
    with pytest.raises(UnsupportedModel, match="vocabulary of 96, the target one of 300"):
        speculative(reader, ModelDrafter(EagerReader(tiny(layers=1))), [[1]], 2, GREEDY, limits, NOISE)
    with pytest.raises(ValueError, match="k must be"):
        speculative(reader, PromptLookup(vocabulary=300), [[1]], 0, GREEDY, limits, NOISE)
    with pytest.raises(ValueError, match="2 requests"):
        autoregressive(reader, [[1]], GREEDY, limits, two)
    with pytest.raises(ValueError, match="max_new_tokens"):
        Limits(max_new_tokens=0, eos=frozenset(), context=40)
    with pytest.raises(ValueError, match=r"limits\.context is 161"):
        autoregressive(reader, [[1]], GREEDY, Limits(5, frozenset(), 161), NOISE)


def test_no_prompts_give_no_texts(target: PreTrainedModel) -> None:
    reader, limits = EagerReader(target), Limits(max_new_tokens=5, eos=frozenset(), context=40)
    assert autoregressive(reader, [], GREEDY, limits, Noise(0, [])) == []
    for drafter in (ModelDrafter(EagerReader(target)), PromptLookup(vocabulary=300)):
        assert speculative(reader, drafter, [], 2, GREEDY, limits, Noise(0, [])) == []


def test_a_drafter_reads_no_token_twice(target: PreTrainedModel) -> None:
    """After k guesses that all stood two tokens are unread, the last guess and the bonus; after a fallen one, one."""
    reader = EagerReader(target)
    drafter = ModelDrafter(reader)
    prompts, noise = [PROMPT, PROMPT, PROMPT], Noise(0, range(3))
    drafter.start(prompts, 64, Sampler(GREEDY, noise, prompts, capacity=64, vocabulary=300, device=reader.device))
    drafter.commit([[1], [2], [3]])
    assert reader.lengths == [4, 4, 4]
    guesses = drafter.propose(3).tokens.tolist()
    drafter.commit([[*guesses[0], 5], [*guesses[1][:1], 5], [5]])
    assert reader.lengths == [9 - 2, 7 - 1, 6 - 1]


def test_an_observer_sees_every_round_as_it_was_judged(
    target: PreTrainedModel, noisy: Callable[..., PreTrainedModel]
) -> None:
    rounds: list[tuple[Draft, torch.Tensor, torch.Tensor]] = []
    limits = Limits(max_new_tokens=20, eos=frozenset(), context=160)
    drafter = ModelDrafter(EagerReader(noisy(target)))
    (made,) = speculative(
        EagerReader(target),
        drafter,
        [PROMPT],
        3,
        Sampling(temperature=1.0, top_k=20),
        limits,
        NOISE,
        observer=lambda draft, p, count: rounds.append((draft, p, count)),
    )
    assert [int(draft.length[0]) for draft, _, _ in rounds] == made.proposed
    assert [int(count[0]) - 1 for _, _, count in rounds] == made.accepted
    for draft, p, _ in rounds:
        guesses = draft.tokens.shape[1]
        assert p.shape == (1, guesses + 1, 300)
        assert p.dtype == torch.float32
        if guesses:
            assert draft.q is not None
            assert draft.q.shape == (1, guesses, 300)
            assert ((draft.q > 0).sum(-1) == 20).all()
            assert (draft.q.gather(2, draft.tokens.unsqueeze(2)) > 0).all()


class Diary:
    def __init__(self) -> None:
        self.spans: list[str] = []

    @contextmanager
    def span(self, what: str) -> Iterator[None]:
        self.spans.append(what)
        yield


def test_the_clock_is_told_what_is_being_done(target: PreTrainedModel) -> None:
    limits = Limits(max_new_tokens=9, eos=frozenset(), context=160)
    diary = Diary()
    autoregressive(EagerReader(target), [PROMPT], GREEDY, limits, NOISE, clock=diary)
    assert diary.spans == ["prefill", *["verify", "accept"] * 8]
    diary = Diary()
    drafter = ModelDrafter(EagerReader(target))
    speculative(EagerReader(target), drafter, [PROMPT], 3, GREEDY, limits, NOISE, clock=diary)
    assert diary.spans == ["prefill", *["draft", "verify", "accept"] * 2]


def test_a_listener_hears_every_round_as_it_ends(
    target: PreTrainedModel, noisy: Callable[..., PreTrainedModel], reference: Callable[..., list[int]]
) -> None:
    """What it heard, put together by prompt, is what was written; rows that leave change no other's number."""
    prompts = [[5], PROMPT, [0, 20, 31, 20], [11, 12, 13]]
    eos = frozenset({reference(target, prompts[0], 4)[3], reference(target, prompts[2], 9)[8]})
    limits = Limits(max_new_tokens=24, eos=eos, context=160)
    noise = Noise(0, range(4))
    for drafter in (None, ModelDrafter(EagerReader(noisy(target)))):
        heard: list[Round] = []
        if drafter is None:
            made = autoregressive(EagerReader(target), prompts, GREEDY, limits, noise, listener=heard.append)
        else:
            made = speculative(EagerReader(target), drafter, prompts, 3, GREEDY, limits, noise, listener=heard.append)
        assert len({row.target_passes for row in made}) >= 3  # they leave at different times
        assert len(heard) == max(row.target_passes for row in made)
        assert heard[0].accepted == heard[0].proposed == [0, 0, 0, 0]
        for number, row in enumerate(made):
            mine = [(heard_of, heard_of.rows.index(number)) for heard_of in heard if number in heard_of.rows]
            assert len(mine) == row.target_passes
            assert [token for one, place in mine for token in one.emitted[place]] == row.tokens
            assert [one.accepted[place] for one, place in mine[1:]] == row.accepted
            assert [one.proposed[place] for one, place in mine[1:]] == row.proposed


def test_what_a_listener_raises_ends_the_writing(target: PreTrainedModel) -> None:
    class EnoughError(Exception):
        pass

    heard: list[list[int]] = []

    def listen(one: Round) -> None:
        heard.append(one.emitted[0])
        if len(heard) == 3:
            raise EnoughError

    limits = Limits(max_new_tokens=24, eos=frozenset(), context=160)
    with pytest.raises(EnoughError):
        speculative(
            EagerReader(target), ModelDrafter(EagerReader(target)), [PROMPT], 2, GREEDY, limits, NOISE, listener=listen
        )
    assert [len(run) for run in heard] == [1, 3, 3]


def test_no_prompts_are_no_round(target: PreTrainedModel) -> None:
    heard: list[Round] = []
    limits = Limits(max_new_tokens=5, eos=frozenset(), context=40)
    autoregressive(EagerReader(target), [], GREEDY, limits, Noise(0, []), listener=heard.append)
    assert heard == []
