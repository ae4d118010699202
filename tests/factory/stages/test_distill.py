from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from factory.data import TextBlocks, text_blocks
from factory.errors import FactoryError
from factory.models import fingerprint
from factory.stages import Distill, Given
from factory.stages.distill import batch_rows


def silent(_done: int, _total: int, _what: str) -> None:
    pass


def text(rows: int, seed: int) -> TextBlocks:
    generator = torch.Generator().manual_seed(seed)
    return text_blocks([(torch.randint(3, 96, (12,), generator=generator).tolist(), 2) for _ in range(rows)])


def test_training_moves_the_drafter_toward_the_target(tiny: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    target, drafter = tiny(seed=0, dtype=torch.float32), tiny(layers=2, seed=1, dtype=torch.float32)
    given = Given(lambda: target, text(24, 0), text(4, 1), 0, tmp_path, silent)
    before = fingerprint(target)
    facts = Distill(kind="distill", epochs=30, lr=3e-3, batch=8).apply(drafter, given)
    assert facts["held_out_after"]["forward_kl"] < 0.8 * facts["held_out_before"]["forward_kl"]
    assert facts["held_out_after"]["overlap"] > facts["held_out_before"]["overlap"]
    assert len(facts["losses"]) == facts["steps"] == 90
    assert fingerprint(target) == before
    assert not any(p.requires_grad for p in drafter.parameters())


def test_a_perfect_drafter_has_nothing_to_learn(tiny: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    target, drafter = tiny(dtype=torch.float32), tiny(dtype=torch.float32)
    given = Given(lambda: target, text(8, 0), text(2, 1), 0, tmp_path, silent)
    facts = Distill(kind="distill", epochs=1, lr=1e-4).apply(drafter, given)
    assert abs(facts["losses"][0]) < 1e-5
    assert facts["held_out_before"]["overlap"] > 0.9999


def test_accumulation_equals_one_large_batch(tiny: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    losses = []
    for batch, accumulate in ((8, 1), (2, 4)):
        drafter = tiny(layers=1, seed=1, dtype=torch.float32)
        given = Given(lambda: tiny(dtype=torch.float32), text(16, 0), None, 0, tmp_path, silent)
        facts = Distill(kind="distill", epochs=2, lr=3e-3, batch=batch, accumulate=accumulate).apply(drafter, given)
        losses.append(facts["losses"])
    # not the weights: Adam makes full steps of gradients that are rounding errors (a key's bias has none)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][0] != pytest.approx(losses[0][-1], rel=1e-2)


def test_an_interrupted_training_ends_bit_for_bit_alike(tiny: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    class StopTrainingError(Exception):
        pass

    def interrupt(done: int, _total: int, _what: str) -> None:
        if done == 5:
            raise StopTrainingError

    stage = Distill(kind="distill", epochs=4, lr=1e-3, batch=8, checkpoint_every=2)
    target, ends = tiny(dtype=torch.float32), []
    for name, progress in (("whole", silent), ("cut", interrupt)):
        folder = tmp_path / name
        folder.mkdir()
        drafter = tiny(layers=1, seed=1, dtype=torch.float32)
        given = Given(lambda: target, text(16, 0), None, 0, folder, progress)
        if progress is interrupt:
            with pytest.raises(StopTrainingError):
                stage.apply(drafter, given)
            drafter = tiny(layers=1, seed=1, dtype=torch.float32)
            given = Given(lambda: target, text(16, 0), None, 0, folder, silent)
        stage.apply(drafter, given)
        ends.append(fingerprint(drafter))
    assert ends[0] == ends[1]


def test_a_diverging_training_stops_and_says_what_to_lower(
    tiny: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    target, drafter = tiny(dtype=torch.float32), tiny(layers=1, seed=1, dtype=torch.float32)
    with torch.no_grad():
        next(drafter.parameters()).fill_(float("nan"))
    with pytest.raises(FactoryError, match="lower `lr`"):
        Distill(kind="distill").apply(drafter, Given(lambda: target, text(8, 0), None, 0, tmp_path, silent))


def test_batches_are_a_function_of_seed_and_index_and_cover_every_row() -> None:
    epoch = [row for index in range(5) for row in batch_rows(10, 0, index, 2)]
    assert sorted(epoch) == list(range(10))
    assert batch_rows(10, 0, 3, 2) == batch_rows(10, 0, 3, 2)
    assert epoch != [row for index in range(5, 10) for row in batch_rows(10, 0, index, 2)]


def test_the_learning_rate_warms_up_and_decays() -> None:
    stage = Distill(kind="distill", lr=1.0, warmup=0.1, final_lr=0.1)
    rates = [stage.learning_rate(step, 100) for step in range(100)]
    assert rates[0] < rates[5] < rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 <= rates[-1] < 0.11
