"""What a digest covers."""

from __future__ import annotations

import pytest
from loaded import recipe_of

from factory.distillation.settings import OnPolicy, Selection
from factory.recipes.recipe import digests
from factory.stages import Distill

BASE = (
    "name: x\ndata: {prompts: bos, samples: 5}\n"
    "stages: [{kind: drop_layers, keep: 2}, {kind: distill}, {kind: drop_layers, keep: 1}, {kind: distill}]\n"
)


@pytest.mark.parametrize(
    ("old", "new", "first_changed"),
    [
        ("keep: 2", "keep: 3", 0),
        ("keep: 2", "keep: 2, score: first_last", 0),
        ("keep: 2", "keep: [0, 1]", 0),
        ("{kind: distill}, {kind: drop", "{kind: distill, epochs: 2}, {kind: drop", 1),
        ("keep: 1", "keep: 0.5", 2),
        ("{kind: distill}]", "{kind: distill, clip: 0.7}]", 3),
        ("samples: 5", "samples: 6", 1),
        ("samples: 5", "samples: 5, temperature: 0.5", 1),
        ("stages:", "seed: 1\nstages:", 1),
        ("stages:", "target: {dtype: bfloat16}\nstages:", 0),
        ("name: x", "name: y", 4),
        ("stages:", "keep_raw: true\nstages:", 4),
        ("stages:", "target: {model: other/place}\nstages:", 4),  # what it holds counts, not what it is called
        ("prompts: bos", "prompts: a.txt", 1),
    ],
)
def test_a_change_changes_the_digests_from_its_stage_on(old: str, new: str, first_changed: int) -> None:
    assert old in BASE
    before = digests(recipe_of(BASE), "weights", "text")
    after = digests(recipe_of(BASE.replace(old, new, 1)), "weights", "text")
    assert before[:first_changed] == after[:first_changed]
    assert not set(before[first_changed:]) & set(after)


def test_every_field_of_every_stage_enters_its_digest() -> None:
    changed: dict[str, dict[str, object]] = {
        "drop_layers": {"keep": 3, "score": "first_last"},
        "prune_width": {
            **{"keep_ffn": 64, "keep_heads": 2, "keep_kv_heads": 1, "score": "magnitude", "multiple_of": 8},
        },
        "fresh": {"inherit": ("head",)},
        "distill": {
            **{"temperature": 2.0, "epochs": 2.0, "lr": 1.0, "warmup": 0.5, "final_lr": 0.5, "weight_decay": 0.5},
            **{"clip": 2.0, "batch": 9, "accumulate": 2, "checkpoint_every": 7, "loss": "tv", "method": "seq_kd"},
            **{
                "teacher": "cache",
                "top_k": 7,
                "drawn": 3,
                "on_policy": OnPolicy(share=0.5),
                "select": Selection(keep=0.5),
            },
            **{"optimizer": "muon", "ema": 0.9, "freeze": ("head",), "lora": 4, "pack": 64, "compile": True},
            **{
                "untie_head": True,
                "gradient_checkpointing": True,
                "precision": "float32",
                "check_every": 3,
                "patience": 2,
                "keep": "last",
            },
        },
        "gptq": {"bits": 3, "group_size": 64, "sym": False, "act_order": True, "samples": 7, "damp": 0.1},
    }
    base = recipe_of(
        "name: x\ndata: {prompts: bos, samples: 5}\nstages: [{kind: drop_layers, keep: 2}, "
        "{kind: prune_width, keep_ffn: 32}, {kind: fresh}, {kind: distill}, {kind: gptq}]\n"
    )
    assert [stage.kind for stage in base.stages] == list(changed)
    for place, stage in enumerate(base.stages):
        free = set(type(stage).model_fields) - {"kind", "backend"}
        assert set(changed[stage.kind]) == free, f"{stage.kind}: name every field here"
        for key, value in changed[stage.kind].items():
            stages = list(base.stages)
            stages[place] = stage.model_copy(update={key: value})
            other = digests(base.model_copy(update={"stages": stages}), "weights", "text")
            assert other[place] != digests(base, "weights", "text")[place], key


def test_what_is_drawn_follows_the_seed_without_text() -> None:
    drawn, counted = "{kind: prune_width, keep_ffn: 32, score: random}", "{kind: drop_layers, keep: 2}"
    for stage, differs in ((drawn, True), (counted, False)):
        one, two = (
            digests(recipe_of(f"name: x\nstages: [{stage}]\nseed: {seed}\n"), "weights", None) for seed in (0, 1)
        )
        assert (one != two) == differs


def test_digests_cover_target_text_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(BASE)
    base = digests(recipe, "weights", "text")
    assert len(set(base)) == 4
    assert digests(recipe, "weights", "text") == base
    assert not set(digests(recipe, "others", "text")) & set(base)
    assert [a == b for a, b in zip(digests(recipe, "weights", "t"), base, strict=True)] == [True, False, False, False]
    monkeypatch.setattr(Distill, "version", Distill.version + 1)
    assert [a == b for a, b in zip(digests(recipe, "weights", "text"), base, strict=True)] == [
        True,
        False,
        False,
        False,
    ]


def test_the_place_of_a_prompts_file_is_not_in_the_digest() -> None:
    here, there = (recipe_of(BASE.replace("bos", f"{folder}/a.txt")) for folder in ("here", "there"))
    assert digests(here, "weights", "text") == digests(there, "weights", "text")
