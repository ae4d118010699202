"""Narrower models: equal to the masked full one, legal for grouped queries, as small as forecast."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch_pruning
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, PreTrainedModel

from factory.anatomy.families import ANATOMIES, anatomy_of, edited_config, shape_from_config
from factory.anatomy.shapes import Edit, Shape
from factory.data.blocks import TextBlocks, text_blocks
from factory.errors import UnsupportedModel
from factory.stages import Given, PruneWidth
from factory.surgery.activations import contributions, magnitudes
from factory.surgery.carving import carve_folder, carve_module

CAN_LOSE_HEADS = sorted(family for family, known in ANATOMIES.items() if known.why_no_heads is None)


def silent(_done: int, _total: int, _what: str) -> None:
    pass


def stage(**keys: object) -> PruneWidth:
    return PruneWidth.model_validate({"kind": "prune_width", **keys})


def text(seed: int = 0) -> TextBlocks:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 96, (length,), generator=generator).tolist() for length in (20, 7, 33, 12, 25)]
    return text_blocks([(row, 1) for row in rows])


def masked(model: PreTrainedModel, edit: Edit) -> None:
    """An independent way to remove: what goes is silenced where it is taken up, every tensor keeps its size."""
    anatomy = anatomy_of(model.config.to_dict())
    width = shape_from_config(model.config.to_dict()).head_dim
    for index, layer in enumerate(model.get_submodule(anatomy.layers)):
        for kept, path, size in ((edit.keep_ffn, anatomy.ffn_out, 1), (edit.keep_heads, anatomy.attention_out, width)):
            if kept is not None:
                stays = {channel * size + place for channel in kept[index] for place in range(size)}

                def silence(_m: object, given: tuple[torch.Tensor, ...], stays: set[int] = stays) -> object:
                    gone = torch.tensor([i not in stays for i in range(given[0].shape[-1])])
                    return (given[0].masked_fill(gone, 0.0), *given[1:])

                layer.get_submodule(path).register_forward_pre_hook(silence)


def test_a_narrow_ffn_equals_the_masked_full_model(tiny: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    model = tiny(layers=3)
    given = Given(lambda: model, text(), None, 0, tmp_path, silent)
    shape = shape_from_config(model.config.to_dict())
    chosen = stage(keep_ffn=0.5, multiple_of=8)
    edit = chosen.decide(shape, chosen.measure(model, given), 0)
    assert edit.keep_ffn is not None and len(set(edit.keep_ffn)) == 3  # each layer its own best
    drafter = carve_module(model, edit)
    made = shape_from_config(drafter.config.to_dict())
    assert replace(made, bits=shape.bits, table_bits=shape.table_bits) == chosen.forecast(shape)
    ids = torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(3))
    masked(model, edit)
    expected = model(input_ids=ids, use_cache=False).logits
    assert torch.allclose(drafter(input_ids=ids, use_cache=False).logits, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", CAN_LOSE_HEADS)
@pytest.mark.parametrize(("keep_heads", "keep_kv_heads"), [(4, None), (2, None), (4, 4), (6, 3), (2, 2), (1, 1)])
def test_fewer_heads_equal_the_masked_full_model(
    family: str,
    keep_heads: int,
    keep_kv_heads: int | None,
    families: dict[str, Callable[..., PreTrainedModel]],
    tmp_path: Path,
) -> None:
    model = families[family](layers=2, num_attention_heads=8, num_key_value_heads=4, hidden_size=48)
    shape = shape_from_config(model.config.to_dict())
    chosen = stage(keep_heads=keep_heads, keep_kv_heads=keep_kv_heads)
    given = Given(lambda: model, text(), None, 0, tmp_path, silent)
    edit = chosen.decide(shape, chosen.measure(model, given), 0)
    drafter = carve_module(model, edit)
    assert (drafter.config.num_attention_heads, drafter.config.head_dim) == (keep_heads, 8)
    assert drafter.config.num_key_value_heads == (keep_kv_heads or keep_heads // 2)
    drafter.save_pretrained(tmp_path / "model")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64)
    ids = torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(3))
    masked(model, edit)
    expected = model(input_ids=ids, use_cache=False).logits
    assert torch.allclose(stock(input_ids=ids, use_cache=False).logits, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", sorted(set(ANATOMIES) - set(CAN_LOSE_HEADS)))
def test_families_that_cannot_lose_heads_say_why(
    family: str, families: dict[str, Callable[..., PreTrainedModel]]
) -> None:
    config = families[family](layers=1).config.to_dict()
    with pytest.raises(UnsupportedModel, match=f"{family} cannot lose heads: transformers derives its head_dim"):
        stage(keep_heads=2).require(config)
    stage(keep_ffn=0.5).require(config)
    with pytest.raises(UnsupportedModel, match="head_dim"):
        edited_config(config, Edit(keep_heads=((0,),), keep_kv_heads=((0,),)))


def of_heads(heads: int, kv_heads: int, ffn: int = 256) -> Shape:
    config = {"model_type": "llama", "vocab_size": 8, "hidden_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": ffn}
    return shape_from_config({**config, **sizes, "max_position_embeddings": 16})


@pytest.mark.parametrize(
    ("heads", "kv_heads", "keep", "kept_kv", "expected"),
    [
        (32, 8, 16, None, (16, 4)),  # whole groups of four
        (32, 8, 0.5, None, (16, 4)),
        (32, 32, 0.5, None, (16, 16)),
        (32, 8, 16, 8, (16, 8)),  # two of each group's four
        (32, 8, 8, 8, (8, 8)),
        (14, 2, 6, None, (6, 2)),  # 6 is no whole number of groups of seven
        (14, 2, 0.5, None, (7, 1)),
        (32, 8, 0.01, None, (4, 1)),
        (32, 8, 32, None, (32, 8)),
    ],
)
def test_heads_stay_legal_for_grouped_queries(
    heads: int, kv_heads: int, keep: float, kept_kv: int | None, expected: tuple[int, int]
) -> None:
    chosen = stage(keep_heads=keep, keep_kv_heads=kept_kv)
    assert chosen.heads(of_heads(heads, kv_heads)) == expected
    after = chosen.forecast(of_heads(heads, kv_heads))
    assert (after.heads, after.kv_heads) == expected


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"keep_heads": 7}, r"7 breaks grouped-query attention.*8 query heads on 2.*legal keep_heads: 2, 4, 6, 8"),
        ({"keep_heads": 9}, "9 breaks grouped-query attention"),
        ({"keep_heads": 4, "keep_kv_heads": 3}, "keep_kv_heads 3 breaks.*legal keep_heads: none"),
        ({"keep_heads": 6, "keep_kv_heads": 1}, "legal keep_heads: 1, 2, 3, 4"),
        ({"keep_ffn": 512}, "keep_ffn is 512, the model has 256 channels"),
        ({"keep_ffn": [*range(31), 256]}, "names channel 256, the model has 0 to 255"),
    ],
)
def test_widths_that_the_model_does_not_have_are_refused(keys: dict[str, object], reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        stage(**keys).forecast(of_heads(8, 2))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({}, "missing; give keep_ffn, keep_heads, or both"),
        ({"keep_ffn": 100}, "100 is no multiple of 32, which kernels need; write 96"),
        ({"keep_ffn": 0}, "at least 1 must stay"),
        ({"keep_ffn": 1.5}, "between 0 and 1, got 1.5; for a count write 2"),
        ({"keep_ffn": [3, 2]}, "rising channel indices"),
        ({"keep_kv_heads": 2, "keep_ffn": 32}, "goes with keep_heads"),
    ],
)
def test_impossible_keys_are_refused(keys: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        stage(**keys)


def test_a_fraction_becomes_a_multiple() -> None:
    assert [stage(keep_ffn=f).channels(of_heads(8, 2, 11008)) for f in (0.5, 0.3, 0.001)] == [5504, 3296, 32]
    assert stage(keep_ffn=0.5, multiple_of=128).channels(of_heads(8, 2, 11008)) == 5504
    with pytest.raises(UnsupportedModel, match=r"0\.9 of 40 channels, as a multiple of 40, is all of them"):
        stage(keep_ffn=0.9, multiple_of=40).channels(of_heads(8, 2, 40))
    assert stage(keep_ffn=[1, 2], multiple_of=1).channels(of_heads(8, 2)) == 2


def test_activation_scores_are_what_the_output_loses(tiny: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    """By the definition: silence one channel or head, look at how far the module's output moves on real tokens."""
    model = tiny(layers=2)
    config = model.config.to_dict()
    anatomy, shape = anatomy_of(config), shape_from_config(config)
    channels, heads = contributions(model, text(), silent, heads=True)
    layer = model.get_submodule(anatomy.layers)[1]
    for path, scores, size, place in (
        (anatomy.ffn_out, channels[1], 1, 5),
        (anatomy.attention_out, heads[1], shape.head_dim, 2),
    ):
        module = layer.get_submodule(path)
        lost = 0.0

        def record(
            module: torch.nn.Module,
            given: tuple[torch.Tensor, ...],
            out: torch.Tensor,
            size: int = size,
            p: int = place,
        ) -> None:
            nonlocal lost
            without = given[0].clone()
            without[..., p * size : (p + 1) * size] = 0
            lost += (out - type(module).forward(module, without)).square().sum().item()

        hook = module.register_forward_hook(record)
        with torch.no_grad():
            for row in range(5):  # one by one: no padding
                model.base_model(input_ids=text().rows([row]).ids, use_cache=False)
        hook.remove()
        assert scores[place].item() == pytest.approx(lost, rel=1e-9)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_magnitudes_rank_as_torch_pruning_ranks(
    family: str, families: dict[str, Callable[..., PreTrainedModel]]
) -> None:
    model = families[family](layers=1)
    anatomy = anatomy_of(model.config.to_dict())
    layer = model.get_submodule(anatomy.layers)[0].requires_grad_(True)
    inputs = torch.zeros(1, 3, model.config.hidden_size, dtype=model.dtype)
    graph = torch_pruning.DependencyGraph().build_dependency(layer.mlp, inputs, verbose=False)
    root = layer.get_submodule(anatomy.ffn[-1])
    group = graph.get_pruning_group(root, torch_pruning.prune_linear_out_channels, idxs=list(range(root.out_features)))
    theirs = torch_pruning.importance.GroupMagnitudeImportance(p=2, bias=False)(group)
    (ours,), _ = magnitudes(model)
    assert ours.argsort().tolist() == theirs.argsort().tolist()
    assert torch.allclose(ours / ours.mean(), theirs.double() / theirs.double().mean())


def test_random_scores_need_no_model_and_follow_the_seed() -> None:
    chosen = stage(keep_ffn=64, keep_heads=4, score="random")
    assert not chosen.needs_model and not chosen.needs_text
    first = chosen.decide(of_heads(8, 2), {}, 0)
    assert first == chosen.decide(of_heads(8, 2), {}, 0) != chosen.decide(of_heads(8, 2), {}, 1)
    assert first.keep_ffn is not None and len(set(first.keep_ffn)) == 2


def test_the_best_heads_stay_with_their_groups() -> None:
    scores = [0.0, 9.0, 1.0, 1.0, 5.0, 4.0, 0.0, 0.0]  # 4 groups of 2; sums 9, 2, 9, 0
    one_each = stage(keep_heads=2, keep_kv_heads=2).decide(of_heads(8, 4), {"heads": [scores] * 2}, 0)
    assert (one_each.keep_heads, one_each.keep_kv_heads) == (((1, 4),) * 2, ((0, 2),) * 2)
    whole = stage(keep_heads=4).decide(of_heads(8, 4), {"heads": [scores] * 2}, 0)
    assert (whole.keep_heads, whole.keep_kv_heads) == (((0, 1, 4, 5),) * 2, ((0, 2),) * 2)


def test_files_shrink_as_forecast(tiny: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    """On a model large enough for names and header not to count, through the shards, within 2 %."""
    sizes = {"hidden_size": 128}
    model = tiny(layers=3, dtype=torch.float32, **sizes)
    model.save_pretrained(tmp_path / "full", max_shard_size="100KB")  # several shards
    config = json.loads((tmp_path / "full" / "config.json").read_text())
    shape = shape_from_config(config)
    chosen = stage(keep_ffn=0.5, score="random", multiple_of=4)
    edit = chosen.decide(shape, {}, 0)
    (tmp_path / "half").mkdir()
    carve_folder(tmp_path / "full", tmp_path / "half", config, edit)
    size = (tmp_path / "half" / "model.safetensors").stat().st_size
    assert size == pytest.approx(chosen.forecast(shape).weight_bytes, rel=0.02)
    assert size < sum(path.stat().st_size for path in (tmp_path / "full").glob("*.safetensors"))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float64)
    assert stock.num_parameters() == chosen.forecast(shape).parameters
    ids = torch.randint(0, 96, (1, 20), generator=torch.Generator().manual_seed(3))
    double = AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype=torch.float64)
    masked(double, edit)
    expected = double(input_ids=ids, use_cache=False).logits
    assert torch.allclose(stock(input_ids=ids, use_cache=False).logits, expected, rtol=0, atol=1e-9)
