"""The matrix of README, cell by cell: every stage on every family, in one chain, decoded against its target."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.evaluation import evaluate
from eval.plan import load_plan
from factory.anatomy.families import ANATOMIES
from factory.artifact import Artifact
from factory.building.build import build
from factory.errors import UnsupportedModel
from factory.models.quantized import loader_of
from factory.recipes.recipe import load

ROOT = Path(__file__).parents[2]
NO_HEADS = sorted(family for family, known in ANATOMIES.items() if known.why_no_heads)
# Wide enough for the quantised kernels after half of the heads and of the FFN have gone.
GROUPED = {"head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
WIDE: dict[str, dict[str, Any]] = {
    **{family: {**GROUPED, "intermediate_size": 128} for family in ("llama", "mistral", "qwen2", "qwen3")},
    "gpt2": {"hidden_size": 64, "n_inner": 128},
    "gpt_neox": {},
    "opt": {},
}
RECIPE = """\
name: chain
target: {{model: {target}}}
data: {{prompts: bos, samples: 40, max_new_tokens: 14, batch: 40, held_out: 0.2}}
stages:
  - {{kind: drop_layers, keep: 2, score: {score}}}
  - {{kind: prune_width, keep_ffn: 0.5{heads}}}
  - {{kind: distill, epochs: 4, lr: 0.003, batch: 4}}
  - {{kind: gptq, bits: 4, group_size: 32}}
keep_raw: true
"""


def silent(_done: int, _total: int, _what: str) -> None:
    pass


def recipe(folder: Path, target: Path, heads: str = "", score: str = "angular") -> Path:
    path = folder / "chain.yaml"
    path.write_text(RECIPE.format(target=target, heads=heads, score=score))
    return path


@pytest.mark.parametrize("family", sorted(ANATOMIES))
def test_the_whole_chain(family: str, tiny_target: Callable[..., Path], tmp_path: Path) -> None:
    target = tiny_target(family, tmp_path / "target", layers=4, **WIDE[family])
    heads = "" if family in NO_HEADS else ", keep_heads: 0.5"
    drafter, raw = build(load(recipe(tmp_path, target, heads), [], None), tmp_path / "out", silent)
    shape = drafter.manifest["shape"]
    assert (shape["layers"], shape["ffn"]) == (2, 64)
    assert shape["heads"] == (4 if family in NO_HEADS else 2)
    kinds = [facts["kind"] for facts in drafter.manifest["facts"]]
    assert kinds == ["drop_layers", "prune_width", "distill", "gptq"]
    trained, rounded = drafter.manifest["facts"][2:]
    assert trained["held_out_after"]["forward_kl"] < trained["held_out_before"]["forward_kl"]
    assert rounded["reload"]["relative_error"] <= rounded["reload"]["allowed"]
    assert all(facts["seconds"] > 0 and facts["peak_memory_bytes"] for facts in drafter.manifest["facts"])
    # before the first training stage it is what stock transformers reads, with as many weights as forecast
    stock = AutoModelForCausalLM.from_pretrained(raw.model_folder, dtype=torch.float32)
    assert stock.num_parameters() == raw.manifest["parameters"]
    assert AutoTokenizer.from_pretrained(raw.model_folder)("ab")["input_ids"] == [91, 92]
    card = (drafter.folder / "README.md").read_text()
    stored = drafter.manifest["weight_format"]
    assert (stored["format"], stored["bits"], stored["kernel"] != "") == ("gptq", 4, True)
    assert f"kernel {stored['kernel']}" in card
    assert ("loads through gptqmodel only" in card) == (family == "gpt2") == (stored["loader"] == "gptqmodel")

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(["Once upon a time", "Tom and his dog", "One day", "A cat", "The sun", "In May"]))
    results = evaluate(
        [drafter], load_plan("smoke"), target=None, out=tmp_path / "eval", prompts_file=prompts, progress=silent
    )
    assert all(row["matches_target"] for row in results["rows"])
    assert any(f"run by {stored['kernel']}" in note for note in results["notes"])


@pytest.mark.parametrize("family", NO_HEADS)
def test_an_empty_cell_is_refused_before_anything_starts(
    family: str, tiny_target: Callable[..., Path], tmp_path: Path
) -> None:
    target = tiny_target(family, tmp_path / "target", layers=4, **WIDE[family])
    said: list[str] = []
    loaded = load(recipe(tmp_path, target, ", keep_heads: 0.5"), [], None)
    with pytest.raises(UnsupportedModel, match=rf"chain\.yaml:6: stages\.1: prune_width: {family} cannot lose heads"):
        build(loaded, tmp_path / "out", lambda _d, _t, what: said.append(what))
    assert said == []


def test_the_matrix_in_readme_is_the_one_that_is_true() -> None:
    rows = {
        cells[0]: cells[1:]
        for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        if (cells := [cell.strip() for cell in line.strip("|").split("|")]) and len(cells) == 8
    }
    names = ["Llama", "Mistral", "Qwen2", "Qwen3", "GPT-2", "GPT-NeoX", "OPT"]
    families = ["llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "opt"]
    assert rows[""] == names and sorted(families) == sorted(ANATOMIES)
    heads = ["no" if ANATOMIES[family].why_no_heads else "yes" for family in families]
    loads = ["yes" if loader_of({"model_type": family}) == "transformers" else "gptqmodel only" for family in families]
    told = {re.sub(r"[^a-z0-9_ ]", "", name.lower()).strip(): cells for name, cells in rows.items()}
    assert told["drop_layers"] == told["distill"] == told["prune_width ffn"] == ["yes"] * 7
    assert told["prune_width heads"] == heads
    assert told["gptq"] == loads
    assert told["decoding greedy and sampled ragged batches of 1 to 64 exact"] == ["yes"] * 7
    assert told["own forward pass lean packed compiled graphed"] == ["yes"] * 7


def test_gptq_of_a_target_whose_widths_no_kernel_takes_is_refused(
    tiny_target: Callable[..., Path], tmp_path: Path
) -> None:
    target = tiny_target("llama", tmp_path / "target", layers=4)  # 48 channels
    with pytest.raises(UnsupportedModel, match=r"chain\.yaml:8: stages\.3: gptq: .*cannot be cut into groups of 32"):
        build(load(recipe(tmp_path, target), ["stages.1.multiple_of=8"], None), tmp_path / "out", silent)


def test_the_target_is_not_loaded_where_nothing_runs_it(tiny_target: Callable[..., Path], tmp_path: Path) -> None:
    target = tiny_target("qwen3", tmp_path / "target", layers=4)
    path = tmp_path / "cut.yaml"
    path.write_text(
        f"name: cut\ntarget: {{model: {target}}}\n"
        "stages:\n  - {kind: drop_layers, keep: [0, 3]}\n"
        "  - {kind: prune_width, keep_ffn: 16, score: random, multiple_of: 8}\n"
    )
    said: list[str] = []
    (made,) = build(load(path), tmp_path / "out", lambda _d, _t, what: said.append(what))
    assert said and "loading the target" not in said
    assert isinstance(made, Artifact) and made.manifest["shape"]["ffn"] == 16
