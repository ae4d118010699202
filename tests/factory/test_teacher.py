from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from factory.data import text_blocks
from factory.teacher import Teacher


def test_what_is_remembered_is_what_is_read(tiny: Callable[..., PreTrainedModel]) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = (9, 4, 12, 5, 7)
    rows = [(torch.randint(3, 96, (length,), generator=generator).tolist(), 2) for length in lengths]
    target, read = tiny(), []
    note = lambda done, _total, _what: read.append(done)  # noqa: E731 - a name for one expression
    online = Teacher(target, text_blocks(rows), epochs=1, batch=2, progress=note)
    assert read == []
    remembering = Teacher(target, text_blocks(rows), epochs=2, batch=2, progress=note)
    assert read == [2, 4, 5]
    for chosen in ([0], [3, 1], [4, 2, 0]):
        expected = online.hidden(chosen)
        assert expected.shape == (sum(lengths[row] - 2 for row in chosen), target.config.hidden_size)
        assert torch.allclose(remembering.hidden(chosen), expected, atol=1e-12)
    ids = torch.tensor([rows[2][0]])
    logits = target(input_ids=ids, use_cache=False).logits[0, 1:-1]  # predictions of tokens 2 to 11
    assert torch.allclose(remembering.head(remembering.hidden([2])), logits, atol=1e-12)
