"""References that know nothing of the decoding code, and drafters that are right as often as a test needs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torch._inductor.config as inductor
from transformers import PreTrainedModel

from factory.decoding.reader import right_padded
from factory.decoding.rejection import Draft
from factory.decoding.sampler import Sampler


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _inductor_as_it_comes() -> Iterator[None]:
    """gptqmodel's CPU kernel leaves inductor changed for the rest of the process, other tests' among it."""
    with inductor.patch(freezing=False, max_autotune=False):
        yield


@pytest.fixture
def target(tiny: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """A model whose greedy text is varied: 2 layers, vocabulary 300, context 160, float64; once per family."""
    return tiny(layers=2, vocabulary=300, seed=1)


@pytest.fixture
def reference() -> Callable[..., list[int]]:
    """`reference(model, prompt, count)`: greedy text by whole forward passes, without any cache."""

    def write(model: PreTrainedModel, prompt: Sequence[int], count: int) -> list[int]:
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(count):
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
                ids.append(int(logits[0, -1].argmax()))
        return ids[len(prompt) :]

    return write


@pytest.fixture
def noisy() -> Callable[..., PreTrainedModel]:
    """`noisy(model, scale)`: a copy whose weights are a little off, so that it guesses right only sometimes."""

    def make(model: PreTrainedModel, scale: float = 0.03, seed: int = 5) -> PreTrainedModel:
        made = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in made.parameters():
                weight += scale * torch.randn(weight.shape, dtype=weight.dtype, generator=generator)
        return made

    return make


class Script:
    """Proposes a known text, row by row, except at the output positions where it is told to be wrong."""

    name = "script"

    def __init__(self, texts: list[list[int]], wrong: Sequence[int], vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.asked: list[int] = []  # every k
        self._texts = texts
        self._wrong = set(wrong)

    def start(self, prompts: list[list[int]], capacity: int, sampler: Sampler) -> None:
        self._written = [0] * len(prompts)

    def propose(self, k: int) -> Draft:
        self.asked.append(k)
        rows = []
        for text, written in zip(self._texts, self._written, strict=True):
            ahead = range(written, min(written + k, len(text)))
            rows.append([(text[at] + (at in self._wrong)) % self.vocabulary for at in ahead])
        tokens, length = right_padded(rows, torch.device("cpu"))
        return Draft(tokens, length, None)

    def commit(self, tokens: list[list[int]]) -> None:
        self._written = [old + len(new) for old, new in zip(self._written, tokens, strict=True)]

    def select(self, rows: list[int]) -> None:
        self._texts = [self._texts[row] for row in rows]
        self._written = [self._written[row] for row in rows]


@pytest.fixture
def script() -> type[Script]:
    """A drafter that is right exactly where a test wants it."""
    return Script


@pytest.fixture(
    params=[
        pytest.param((0, [], [], []), id="first token"),
        pytest.param((1, [], [1], [1]), id="first guess accepted"),
        pytest.param((3, [], [3], [3]), id="accepted, with guesses behind it"),
        pytest.param((3, [4], [3], [3]), id="accepted, with a wrong guess behind it"),
        pytest.param((3, [3], [2], [4]), id="corrected"),
        pytest.param((4, [], [4], [4]), id="last guess accepted"),
        pytest.param((4, [4], [3], [4]), id="last guess corrected"),
        pytest.param((5, [], [4], [4]), id="bonus"),
        pytest.param((8, [2], [1, 4, 1], [4, 4, 1]), id="later round"),
    ]
)
def ending(request: pytest.FixtureRequest) -> tuple[int, list[int], list[int], list[int]]:
    """(place of the last token, wrong guesses, accepted and proposed by round) of a text that ends early, k = 4.

    The prefill writes token 0, so the first round proposes tokens 1 to 4 and its bonus is token 5.
    """
    found: tuple[int, list[int], list[int], list[int]] = request.param
    return found
