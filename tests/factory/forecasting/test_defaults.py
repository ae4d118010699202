"""The default recipe: sound, about that target, and chosen by the forecast."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from factory.errors import UnsupportedModel
from factory.forecasting.defaults import AS_GOOD, BUDGET_S, OVERLAPS, SAMPLES, default_recipe, hoped_alpha
from factory.forecasting.profile import BUILT_IN
from factory.recipes.recipe import Loaded, load
from factory.stages import Distill, DropLayers, Gptq

CONFIGS = Path(__file__).parents[3] / "recipes" / "configs"
LLAMA2 = json.loads((CONFIGS / "llama-2-7b-chat.json").read_text())
GPT2 = json.loads((CONFIGS / "gpt2.json").read_text())
H200 = BUILT_IN["h200"]
GRAPHS = replace(H200, layer_overhead_s=0.0)  # an engine without the host's time: only bytes count


def loaded(tmp_path: Path, text: str) -> Loaded:
    (tmp_path / "r.yaml").write_text(text)
    (found,) = load(tmp_path / "r.yaml")
    return found


def kept(tmp_path: Path, text: str) -> int:
    stage = loaded(tmp_path, text).recipe.stages[0]
    assert isinstance(stage, DropLayers) and isinstance(stage.keep, int)
    return stage.keep


@pytest.mark.parametrize("config", [LLAMA2, GPT2])
@pytest.mark.parametrize("device", ["cpu", "h200", "a100"])
def test_it_is_a_recipe_that_loads_and_says_why(tmp_path: Path, config: dict[str, object], device: str) -> None:
    found = default_recipe("someone/My Model", config, BUILT_IN[device])
    recipe = loaded(tmp_path, found.text).recipe
    assert recipe.name == found.name and recipe.target.model == "someone/My Model"
    assert found.name.startswith("my-model-") and found.name in found.reason and "not measured here" in found.reason
    assert isinstance(recipe.stages[1], Distill) and recipe.data is not None and recipe.data.written_by == "target"
    assert found.text.startswith(f"# {found.name}, since no recipe was named") and found.reason.count("\n") == 0
    assert max(map(len, found.text.splitlines())) <= 120


def test_the_depth_is_in_the_middle_of_the_best_forecasts(tmp_path: Path) -> None:
    # On a host-bound device a draft step costs its share s of the layers; with k = 2 the speedup is
    # (1 + a + a^2) / (1 + 2 s) at a = hoped_alpha(s), k = 1 and k = 3 likewise.
    def best(layers: int) -> float:
        share, alpha = layers / 32, hoped_alpha(layers / 32)
        return max(sum(alpha**i for i in range(k + 1)) / (1 + k * share) for k in range(1, 17))

    host_bound = replace(H200, layer_overhead_s=1.0)
    highest = max(map(best, range(1, 17)))
    good = [layers for layers in range(1, 17) if best(layers) >= AS_GOOD * highest]
    assert good == [1, 2, 3, 4, 5, 6, 7, 8]
    assert kept(tmp_path, default_recipe("m", LLAMA2, host_bound).text) == 4


def test_acceptance_lies_on_lines_between_what_was_measured() -> None:
    assert [hoped_alpha(share) for share, _ in OVERLAPS] == [pytest.approx(overlap) for _, overlap in OVERLAPS]
    assert hoped_alpha(0.175) == pytest.approx((0.48 + 0.67) / 2)
    assert hoped_alpha(0.0) == pytest.approx(0.32) and hoped_alpha(0.75) == pytest.approx(0.81)


def test_a_dear_head_asks_for_more_depth(tmp_path: Path) -> None:
    # A vocabulary whose head outweighs the layers makes depth nearly free.
    wide = {**LLAMA2, "vocab_size": 2_000_000}
    slim = {**LLAMA2, "vocab_size": 1_000}
    deep, shallow = (
        kept(tmp_path, default_recipe("m", config, replace(GRAPHS, kind="cpu")).text) for config in (wide, slim)
    )
    assert deep > shallow


def test_four_bits_only_where_a_kernel_reads_them_and_bytes_count(tmp_path: Path) -> None:
    quantised = default_recipe("m", LLAMA2, GRAPHS)
    assert isinstance(loaded(tmp_path, quantised.text).recipe.stages[-1], Gptq) and "in 4 bits" in quantised.reason
    assert quantised.name.endswith("-int4")
    for config, device in (
        (LLAMA2, H200),  # the host decides, whatever the bytes
        (LLAMA2, replace(GRAPHS, kind="cpu")),  # no kernel
        (GPT2, GRAPHS),  # stock transformers could not load it
        ({**LLAMA2, "intermediate_size": 11000}, GRAPHS),  # does not divide into groups
    ):
        found = default_recipe("m", config, device)  # type: ignore[arg-type]
        assert not any(isinstance(stage, Gptq) for stage in loaded(tmp_path, found.text).recipe.stages)


def test_a_target_that_no_depth_pays_for_is_said_to_be_one() -> None:
    slow_products = replace(BUILT_IN["cpu"], few_rows_flop_per_s={"float32": ((5, 16.5e9), (8, 25e9))})
    assert "no depth pays" in default_recipe("m", GPT2, slow_products).reason


def test_a_faster_device_writes_more_text(tmp_path: Path) -> None:
    counts = []
    for faster in (1.0, 1e6):
        device = replace(
            BUILT_IN["cpu"],
            bandwidth_bytes_per_s=25e9 * faster,
            peak_flop_per_s={"float32": 136e9 * faster, "bfloat16": 136e9 * faster},
            few_rows_flop_per_s={},
            layer_overhead_s=0.0,
        )
        data = loaded(tmp_path, default_recipe("m", LLAMA2, device).text).recipe.data
        assert data is not None
        counts.append(data.samples)
    assert counts == [SAMPLES[-1], SAMPLES[0]] and BUDGET_S > 0


def test_names_are_folder_names(tmp_path: Path) -> None:
    (tmp_path / "a--b c!").mkdir()
    for target in ("x/" + "y" * 200, str(tmp_path / "a--b c!"), "..", "///", '"quoted"'):
        found = default_recipe(target, GPT2, H200)
        (tmp_path / "r.yaml").write_text(found.text)
        text = found.text.replace(json.dumps(target), "m/n")  # such a target need not exist
        assert loaded(tmp_path, text).recipe.name == found.name


def test_one_layer_cannot_be_dropped_from() -> None:
    with pytest.raises(UnsupportedModel, match="has 1 layer"):
        default_recipe("m", {**GPT2, "n_layer": 1}, H200)
    with pytest.raises(UnsupportedModel, match="supported:"):
        default_recipe("m", {"model_type": "mamba"}, H200)
