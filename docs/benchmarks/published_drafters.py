"""The drafters of published_moves.py: each move done on a copy of the target, with what was published for it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from factory.anatomy.families import shape_from_config
from factory.models import loading as models
from factory.stages.drop_layers import DropLayers
from factory.surgery.carving import carve_module

TARGET = Path("recipes/demo/target")


GPTQ = Path("artifacts/moves/gptq--bits4/model")


BLOCK = 5  # theirs, both ways


NF4_BLOCK = 64


NF4_LEVELS = (  # of bitsandbytes, as QLoRA (arXiv 2305.14314) defines them
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)


ZEROS = "Zeros were written into tensors of full size: no byte and no operation less"


ONE_PROMPT = "one prompt a category, one seed, no interval"


BY_ONE = "acceptance looked up the previous token in the next position's distributions"


@dataclass(frozen=True)
class Move:
    """One way of making a drafter, and what was published for it."""

    name: str
    make: Callable[[], PreTrainedModel]
    published: dict[int, str]  # k -> mean accepted at lengths 20 / 50 / 100
    wrong: str  # with the published figure, in one sentence
    emulated: bool = False  # rounded and kept in float32: its acceptance is true, its speed is not


def copied() -> PreTrainedModel:
    """The target once more, read from disk: nothing is shared."""
    return models.load_model(TARGET, dtype=torch.float32)


def layer_matrices(model: PreTrainedModel) -> list[torch.Tensor]:
    """The weights of all linear modules of all layers."""
    return [weight for name, weight in model.named_parameters() if ".layers." in name and weight.dim() == 2]


@torch.no_grad()
def zeroed(density: float, *, everything: bool = False) -> PreTrainedModel:
    """All but the largest `density` of each layer matrix is 0; `everything`: of norms and embedding too."""
    model = copied()
    for weight in model.parameters() if everything else layer_matrices(model):
        flat = weight.abs().flatten()
        kept = torch.zeros_like(flat).scatter_(0, flat.topk(max(1, round(density * flat.numel()))).indices, 1.0)
        weight.mul_(kept.view_as(weight))
    return model


@torch.no_grad()
def blocks_zeroed(density: float) -> PreTrainedModel:
    """Of each layer matrix the 5 x 5 blocks of smallest sum are 0; the rows and columns left over stay, as theirs."""
    model = copied()
    for weight in layer_matrices(model):
        rows, columns = (side // BLOCK for side in weight.shape)
        part = weight[: rows * BLOCK, : columns * BLOCK]
        view = part.unflatten(1, (columns, BLOCK)).unflatten(0, (rows, BLOCK))  # [R, b, C, b]
        score = view.abs().sum((1, 3)).flatten()
        kept = torch.zeros_like(score).scatter_(0, score.topk(round(density * score.numel())).indices, 1.0)
        part.mul_(kept.view(rows, 1, columns, 1).expand(rows, BLOCK, columns, BLOCK).reshape(part.shape))
    return model


def layers_dropped(share: float) -> PreTrainedModel:
    """`share` of the layers, spread evenly over the depth."""
    target = copied()
    edit = DropLayers(kind="drop_layers", keep=share).decide(shape_from_config(target.config.to_dict()), {})
    return carve_module(target, edit)


@torch.no_grad()
def nf4(model: PreTrainedModel) -> PreTrainedModel:
    """Every layer matrix to the nearest of 16 levels times the largest of its block of 64, and back."""
    levels = torch.tensor(NF4_LEVELS)
    edges = (levels[1:] + levels[:-1]) / 2
    for weight in layer_matrices(model):
        blocks = weight.view(-1, NF4_BLOCK)
        scale = blocks.abs().amax(1, keepdim=True).clamp(min=1e-12)
        blocks.copy_(levels[torch.bucketize(blocks / scale, edges)] * scale)
    return model


@torch.no_grad()
def int8(model: PreTrainedModel) -> PreTrainedModel:
    """Every layer matrix to 8 bits, one scale for each output, and back."""
    for weight in layer_matrices(model):
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        weight.copy_((weight / scale).round() * scale)
    return model


def gptq() -> PreTrainedModel:
    """What the stage `gptq` made of the whole target."""
    return models.load_model(GPTQ, dtype=torch.float32)


def moves() -> list[Move]:
    """In their order. Published figures are presumably GPT-2's, which is not said, but for those of Llama 2."""
    return [
        Move(
            "unstructured zeros, density .25",
            lambda: zeroed(0.25),
            {5: "2.571 / 3.25 / 2.731", 10: "3.182 / 7.5 / 3"},
            f"{ZEROS}, so whatever is accepted a draft step costs as much as a target step; {BY_ONE}; {ONE_PROMPT}.",
        ),
        Move(
            "the same of every tensor, norms and embedding too",
            lambda: zeroed(0.25, everything=True),
            {5: "2.571 / 3.25 / 2.731", 10: "3.182 / 7.5 / 3"},
            "This is what the released code does: zeroing three quarters of a norm's weights cuts those channels out.",
        ),
        Move(
            "unstructured zeros, density .5",
            lambda: zeroed(0.5),
            {},
            "No figure for it alone was published.",
        ),
        Move(
            "structured zeros, 5 x 5 blocks, density .25",
            lambda: blocks_zeroed(0.25),
            {5: "2.538 / 3.25 / 2.097", 10: "1.722 / 7.5 / 1.538"},
            f"{ZEROS}, and no kernel that would skip a block; {BY_ONE}.",
        ),
        Move(
            "1/2 of the layers, not healed",
            lambda: layers_dropped(0.5),
            {5: "1.3 / 0.545 / 1.182", 10: "1.35 / 2 / 2.84"},
            "The rule keeps more layers than asked for where their number does not divide; no distillation follows, "
            "although that is what makes such a drafter; Llama's branch is empty.",
        ),
        Move(
            "1/4 of the layers, not healed",
            lambda: layers_dropped(0.25),
            {5: "0.704 / 0.778 / 0.627", 10: "0.808 / 1.286 / 0.846"},
            "As the row above; the conclusion that dropping layers does not pay was drawn without healing.",
        ),
        Move(
            "half precision (bfloat16)",
            lambda: models.load_model(TARGET, dtype=torch.bfloat16),
            {5: "5 / 5 / ~4.5", 10: "8.6 / 7 / 9.4"},
            "The function converts a copy and returns the original: as released, drafter and target are one model, and "
            "figures below k must come from another version.",
        ),
        Move(
            "GPTQ, 4 bits",
            gptq,
            {5: "5 / 5 / 5 (Llama 2)", 10: "10 / 10 / 10 (Llama 2)"},
            "The library quantises in place and was given the target itself: both became one object; all is accepted.",
        ),
        Move(
            "NF4, emulated",
            lambda: nf4(copied()),
            {
                5: "2.769 / 5 / 3.348; Llama 2: 2.76 / 2.23 / 2.39",
                10: "6.143 / 4.33 / 3.8; Llama 2: 3.8 / 3.16 / 2.7",
            },
            f"{BY_ONE[0].upper()}{BY_ONE[1:]}; {ONE_PROMPT}: at k = 5 the middle length accepts more than both others.",
            emulated=True,
        ),
        Move(
            "density .5, then 8 bits, emulated",
            lambda: int8(zeroed(0.5)),
            {},
            "Published as a share at length 240: 0.0 (8-bit drafter, 32-bit target), 0.4 (16/32), 0 (8/16); our alpha "
            f"stands beside. {BY_ONE[0].upper()}{BY_ONE[1:]}.",
            emulated=True,
        ),
        Move(
            "the target itself, a bit-identical copy",
            copied,
            {},
            "The control, what their half and GPTQ rows really measured: all is accepted and nothing is gained.",
        ),
    ]
