"""What tests of recipes share: a recipe with every part, a target's config, and loading one from a file or a text."""

from __future__ import annotations

from pathlib import Path

from factory.files.documents import read, validate
from factory.recipes.recipe import Loaded, Recipe, load

FULL = """\
name: half
target: {model: some/model, revision: main}
data: {prompts: bos, samples: 10}
stages:
  - {kind: drop_layers, keep: 2}
  - {kind: distill, lr: 1}
"""
# The config of a Llama of eight layers: enough for a forecast.
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 8,
    "max_position_embeddings": 160,
    "vocab_size": 512,
    "tie_word_embeddings": True,
}


def load_one(path: Path, *arguments: object, **options: object) -> Loaded:
    """The only candidate of a recipe without a grid."""
    (loaded,) = load(path, *arguments, **options)  # type: ignore[arg-type]
    assert (loaded.name, loaded.candidates) == (loaded.recipe.name, 1)
    return loaded


def recipe_of(text: str) -> Recipe:
    return validate(read(text, "r.yaml"), Recipe)
