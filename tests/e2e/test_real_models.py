"""A real public model through the fractions-only recipe. Skips where DRAFTER_TEST_MODELS names no folder."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from eval.evaluation import evaluate
from eval.plan import load_plan
from factory.building.build import build
from factory.recipes.recipe import load

ROOT = Path(__file__).parents[2]


def silent(_done: int, _total: int, _what: str) -> None:
    pass


@pytest.mark.slow
def test_any_recipe_on_stories260k(extra_models: Path, tmp_path: Path) -> None:
    target = extra_models / "stories260K"
    if not target.is_dir():
        pytest.skip(f"no stories260K in {extra_models}")
    changes = ["data.samples=48", "data.max_new_tokens=48"]
    loaded = load(ROOT / "recipes" / "demo" / "any.yaml", changes, str(target))
    artifacts = build(loaded, tmp_path / "artifacts", silent)
    assert artifacts[0].manifest["shape"]["layers"] < 5
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(["Once upon a time, there was a little girl", "Tom and his dog", "One day a cat"] * 4))
    results = evaluate(
        artifacts[:1], load_plan("smoke"), target=None, out=tmp_path / "out", prompts_file=prompts, progress=silent
    )
    assert all(row["matches_target"] for row in results["rows"])
    stock = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    lines = [json.loads(line) for line in (tmp_path / "out" / "tokens.jsonl").read_text().splitlines()]
    greedy = [line for line in lines if line["temperature"] == 0]
    assert greedy
    for line in greedy[:12]:
        ids = torch.tensor([line["prompt_ids"]])
        expected = stock.generate(ids, do_sample=False, max_new_tokens=len(line["output_ids"]))[0, ids.shape[1] :]
        assert line["output_ids"] == expected.tolist()
