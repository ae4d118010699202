from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from factory.anatomy.families import shape_from_config
from factory.data.blocks import text_blocks
from factory.errors import UnsupportedModel
from factory.stages import DropLayers, Given
from factory.tensors.saliency import angular_distance

OUTGOING = ("o_proj", "c_proj", "down", "out_proj", "fc2", "dense.", "4h_to_h")  # what adds to the residual stream


def silent(_done: int, _total: int, _what: str) -> None:
    pass


@pytest.mark.parametrize(
    ("keep", "score", "expected"),
    [
        (4, "even", (0, 3, 6, 9)),
        (0.2, "even", (0, 9)),
        (1, "even", (0,)),
        (3, "first_last", (0, 1, 9)),
        (1, "first_last", (0,)),
        ([2, 5], "even", (2, 5)),
        (0.01, "first_last", (0,)),
        (10, "even", tuple(range(10))),
    ],
)
def test_which_layers_stay(
    tiny: Callable[..., PreTrainedModel], keep: int | float | list[int], score: str, expected: tuple[int, ...]
) -> None:
    shape = shape_from_config(tiny(layers=10).config.to_dict())
    stage = DropLayers(kind="drop_layers", keep=keep, score=score)  # type: ignore[arg-type]
    assert stage.decide(shape, {}).keep_layers == expected
    assert stage.forecast(shape).layers == len(expected)


def test_block_influence_finds_the_layers_that_do_something(
    tiny: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = tiny(layers=5)
    with torch.no_grad():  # layers 1 and 3 add almost nothing to the residual stream
        for name, weight in model.named_parameters():
            if any(f".{layer}." in name for layer in (1, 3)) and any(part in name for part in OUTGOING):
                weight.mul_(1e-3)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 96, (length,), generator=generator).tolist() for length in (20, 7, 33)]
    given = Given(lambda: model, text_blocks([(row, 1) for row in ids]), None, 0, tmp_path, silent)
    stage = DropLayers(kind="drop_layers", keep=3, score="block_influence")
    scores = stage.measure(model, given)
    assert len(scores["block_influence"]) == 5
    assert stage.decide(shape_from_config(model.config.to_dict()), scores).keep_layers == (0, 2, 4)


def test_impossible_keeps_are_refused(tiny: Callable[..., PreTrainedModel]) -> None:
    shape = shape_from_config(tiny(layers=4).config.to_dict())
    with pytest.raises(UnsupportedModel, match="keep is 5, the model has 4 layers"):
        DropLayers(kind="drop_layers", keep=5).forecast(shape)
    with pytest.raises(UnsupportedModel, match="names layer 4, the model has 0 to 3"):
        DropLayers(kind="drop_layers", keep=[0, 4]).forecast(shape)
    for keep in (0, -1, 1.5, [], [2, 1], [1, 1]):
        with pytest.raises(ValidationError):
            DropLayers(kind="drop_layers", keep=keep)


def test_angular_drops_the_run_over_which_the_stream_turns_least(
    tiny: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = tiny(layers=6)
    with torch.no_grad():  # layers 2 and 3 add almost nothing
        for name, weight in model.named_parameters():
            if any(f".{layer}." in name for layer in (2, 3)) and any(part in name for part in OUTGOING):
                weight.mul_(1e-3)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 96, (length,), generator=generator).tolist() for length in (20, 7, 33)]
    given = Given(lambda: model, text_blocks([(row, 1) for row in ids]), None, 0, tmp_path, silent)
    shape = shape_from_config(model.config.to_dict())
    stage = DropLayers(kind="drop_layers", keep=4, score="angular")
    scores = stage.measure(model, given)
    assert len(scores["angular"]) == 3  # runs of two that begin at layer 1, 2 or 3
    assert all(0 <= angle <= 1 for angle in scores["angular"])
    assert stage.decide(shape, scores).keep_layers == (0, 1, 4, 5)
    for keep, expected in ((1, (0,)), (2, (0, 5)), (6, tuple(range(6)))):
        few = DropLayers(kind="drop_layers", keep=keep, score="angular")
        assert few.decide(shape, few.measure(model, given)).keep_layers == expected


def test_the_angle_is_that_of_the_paper() -> None:
    east, north = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]])
    seen = torch.ones(1, 1)
    assert angular_distance(east, north, seen).item() == pytest.approx(0.5)
    assert angular_distance(east, -east, seen).item() == pytest.approx(1.0)
    assert angular_distance(east, 3 * east, seen).item() == pytest.approx(0.0)
    assert angular_distance(east, north, 0 * seen).item() == 0
