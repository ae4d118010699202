"""Two hundred prompts out of few: in which order, from where, and never twice."""

from collections.abc import Sequence

from eval.lossless.prompt_pool import PromptPool, prompt_pool
from eval.suites import Suite

SUITE = Suite("own", None, "0" * 64, ("abcdefgh", "xyz", "abcdefgh", ""))


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def nothing(_count: int, _attempt: int) -> Sequence[list[int]]:
    return []


def text(prompt: list[int]) -> str:
    return "".join(map(chr, prompt))


def test_the_suites_own_come_first_then_cuts_of_them() -> None:
    pool = prompt_pool([SUITE], encode, room=50, count=100, write=nothing)
    assert [text(prompt) for prompt in pool.prompts] == ["abcdefgh", "xyz", "abcdef", "xy", "abcd", "x", "ab"]
    assert pool.sources == {"suite": 2, "cut": 5, "written_by_target": 0}


def test_the_target_writes_what_is_missing_and_is_asked_again_for_repeats() -> None:
    asked: list[tuple[int, int]] = []

    def write(count: int, attempt: int) -> list[list[int]]:
        asked.append((count, attempt))
        return [[900 + attempt, place // 2] for place in range(count)]  # every second one repeats the one before

    pool = prompt_pool([SUITE], encode, room=50, count=13, write=write)
    assert asked == [(6, 0), (3, 1), (1, 2)]
    assert (len(pool.prompts), pool.sources["written_by_target"]) == (13, 6)
    assert len({tuple(prompt) for prompt in pool.prompts}) == 13


def test_what_does_not_fit_is_cut_or_left_out() -> None:
    pool = prompt_pool([SUITE], encode, room=4, count=100, write=lambda count, _: [[1] * 5] * count)
    assert [text(prompt) for prompt in pool.prompts] == ["xyz", "xy", "abcd", "x", "ab"]


def test_fewer_than_asked_for_is_said_by_the_count() -> None:
    facts = prompt_pool([SUITE], encode, room=50, count=100, write=nothing).facts()
    assert (facts["distinct"], facts["shortest_tokens"], facts["longest_tokens"]) == (7, 1, 8)
    assert facts["sha256"] != prompt_pool([SUITE], encode, room=50, count=6, write=nothing).facts()["sha256"]


def test_dealing_mixes_lengths_within_batches_and_loses_nothing() -> None:
    pool = PromptPool([[0] * length for length in range(1, 11)], {})
    dealt = pool.dealt(batch=4)
    assert sorted(map(len, dealt)) == list(range(1, 11))
    assert [len(prompt) for prompt in dealt[:4]] == [1, 4, 7, 10]
    assert pool.dealt(batch=100) == pool.prompts
