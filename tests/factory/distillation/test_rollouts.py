from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from factory.distillation.rollouts import decays, how_many, roll_out
from factory.distillation.settings import OnPolicy

from .conftest import text


@pytest.mark.parametrize("begin", ["prompt", "anywhere"])
def test_a_roll_out_is_the_drafters_own_greedy_text_after_a_beginning_of_the_row(
    tiny: Callable[..., PreTrainedModel], begin: str
) -> None:
    """Against uncached forward passes, in float64."""
    drafter, rows = tiny(layers=2), text(6, 0)
    settings = OnPolicy(share=0.5, begin=begin, new_tokens=5, temperature=0.0)
    written = roll_out(drafter, rows, settings, seed=0, index=3)
    starts = []
    for row in range(len(rows)):
        ids = written.ids[row, : written.length[row]].tolist()
        start = int(written.answer[row].nonzero()[0])
        starts.append(start)
        assert written.answer[row].nonzero().flatten().tolist() == list(range(start, len(ids)))
        assert ids[:start] == rows.ids[row, :start].tolist()
        assert bool(rows.answer[row, start])  # what is continued there is an answer
        for place in range(start, len(ids)):
            with torch.no_grad():
                logits = drafter(input_ids=torch.tensor([ids[:place]]), use_cache=False).logits[0, -1]
            assert ids[place] == int(logits.argmax())
        assert len(ids) - start == 5 or ids[-1] == 2  # as long as asked for, or ended by EOS
    assert starts == [2] * 6 if begin == "prompt" else len(set(starts)) > 1
    again = roll_out(drafter, rows, settings, seed=0, index=3)
    assert torch.equal(again.ids, written.ids)


def test_sampled_roll_outs_differ_between_passes_and_seeds(families: dict[str, Callable[..., PreTrainedModel]]) -> None:
    drafter, rows = families["llama"](layers=2, dtype=torch.float32), text(6, 0)
    settings = OnPolicy(share=0.5, begin="prompt", new_tokens=5)
    found = [roll_out(drafter, rows, settings, seed, index).ids.tolist() for seed, index in ((0, 0), (0, 1), (1, 0))]
    assert found[0] != found[1] and found[0] != found[2]


def test_positions_behind_the_beginning_weigh_less_and_less() -> None:
    rows = text(3, 0)
    expected = [0.8**place for length in rows.length.tolist() for place in range(length - 2)]
    assert decays(rows, 0.8).tolist() == pytest.approx(expected)
    assert decays(rows, 1.0).tolist() == [1.0] * len(expected)


@pytest.mark.parametrize(("share", "rows"), [(0.5, 8), (0.1, 4), (1 / 3, 7), (1.0, 5), (0.05, 1)])
def test_shares_add_up_over_passes(share: float, rows: int) -> None:
    counts = [how_many(share, rows, index) for index in range(60)]
    assert all(0 <= count <= rows for count in counts)
    assert sum(counts) == int(60 * share * rows + 1e-9)
