"""Tiny random models that run through the real code. No model is mocked anywhere in this suite.

`initializer_range` is 0.5: a default-initialised model emits one or two distinct tokens under
greedy decoding, and then every off-by-one passes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it gives


def tiny_llama(
    layers: int = 4, vocabulary: int = 96, context: int = 160, seed: int = 0, dtype: torch.dtype = torch.float64
) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=context,
        initializer_range=0.5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def tiny_gpt2(
    layers: int = 4, vocabulary: int = 96, context: int = 160, seed: int = 0, dtype: torch.dtype = torch.float64
) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=32,
        n_layer=layers,
        n_head=4,
        n_positions=context,
        initializer_range=0.5,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config).to(dtype).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character: 128 ids, the first three special; no training, no download."""
    characters = ["<unk>", "<s>", "</s>", *(chr(code) for code in range(9, 9 + 125))]
    vocabulary = {character: index for index, character in enumerate(characters)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=160
    )


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {"llama": tiny_llama, "gpt2": tiny_gpt2}


@pytest.fixture(params=sorted(FAMILIES))
def tiny(request: pytest.FixtureRequest) -> Callable[..., PreTrainedModel]:
    """`tiny(layers=..., seed=...)` makes a random model; the test runs once per family."""
    return FAMILIES[request.param]


@pytest.fixture(params=sorted(FAMILIES))
def tiny_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A float32 tiny model with its tokenizer, saved as transformers saves it; once per family."""
    folder = tmp_path / f"target-{request.param}"
    FAMILIES[request.param](vocabulary=128, dtype=torch.float32).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def extra_models() -> Path:
    """A folder of real small models, named by DRAFTER_TEST_MODELS; tests that need it skip without."""
    folder = os.environ.get("DRAFTER_TEST_MODELS", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real models: set DRAFTER_TEST_MODELS to a folder that holds them")
    return Path(folder)
