from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from factory.data.blocks import text_blocks
from factory.given import CacheSettings
from factory.teaching.teacher import CachedTeacher, Memory, OnlineTeacher
from factory.teaching.teacher_cache import TeacherCache, write_cache

LENGTHS = (9, 4, 12, 5, 7)


def silent(_done: int, _total: int, _what: str) -> None:
    pass


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_every_teacher_says_what_the_target_says(
    tiny: Callable[..., PreTrainedModel], tmp_path: Path, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    text = text_blocks([(torch.randint(3, 96, (length,), generator=generator).tolist(), 2) for length in LENGTHS])
    target = tiny()
    write_cache(target, text, CacheSettings(temperature, 96), folder=tmp_path / "cache", key={}, progress=silent)
    part = text.rows([0, 2, 3, 4])  # what is left of a text where something is held out
    cached = CachedTeacher(TeacherCache.open(tmp_path / "cache"), part, torch.device("cpu"))
    online = OnlineTeacher(target, part, temperature, progress=silent)
    remembering = OnlineTeacher(target, part, temperature, memory={}, progress=silent)
    for chosen in ([0], [3, 1], [2, 3, 0]):
        alone = []
        for row in chosen:
            ids = part.ids[row, : part.length[row]][None]
            logits = target(input_ids=ids, use_cache=False).logits[0, 1:-1]  # predictions of token 2 and what follows
            alone.append((logits / temperature).log_softmax(-1))
        expected = torch.cat(alone)
        for teacher in (online, remembering):
            found, ids_kept, _ = teacher.predictions(chosen).outcomes(0, len(expected))
            assert ids_kept is None
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        kept, which, _ = cached.predictions(chosen).outcomes(0, len(expected))
        assert which is not None  # halves of log-probabilities
        torch.testing.assert_close(kept[:, :-1].double(), expected.gather(1, which), rtol=2e-3, atol=2e-3)


def test_a_memory_is_read_into_once_and_shared(tiny: Callable[..., PreTrainedModel]) -> None:
    generator = torch.Generator().manual_seed(0)
    text = text_blocks([(torch.randint(3, 96, (6,), generator=generator).tolist(), 2) for _ in range(40)])
    read: list[int] = []
    note = lambda done, _total, _what: read.append(done)  # noqa: E731 - a name for one expression
    target, memory = tiny(), Memory()
    first = OnlineTeacher(target, text, 1.0, memory=memory, progress=note)
    assert read == [0, 16, 32, 40] and len(memory) == 40
    second = OnlineTeacher(target, text, 1.0, memory=memory, progress=note)
    assert read == [0, 16, 32, 40]
    assert torch.equal(first.predictions([7, 3]).hidden, second.predictions([7, 3]).hidden)
