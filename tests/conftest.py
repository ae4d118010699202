"""Tiny random models that run through the real code. No model is mocked anywhere in this suite.

`initializer_range` is 0.5: a default-initialised model emits one or two distinct tokens under
greedy decoding, and then every off-by-one passes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from factory.models import loading as models  # noqa: F401 - silences what transformers says at import

torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it gives


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is marked `gpu` waits for one: it is skipped by name, never left out."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device: torch finds none here"))


@pytest.fixture(scope="session", autouse=True)
def _a_cache_of_the_tests_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever runs the tests keeps their own logs, and forecasts do not depend on a profile measured there."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setenv("MPLCONFIGDIR", str(cache / "matplotlib"))  # fonts are looked for once, not by every command
        yield


GQA = {"num_key_value_heads": 2, "head_dim": 8}
# What each family's config needs beside the sizes that all have. The windows are short: every test crosses them.
OWN: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 48, "tie_word_embeddings": False, **GQA},
    "mistral": {"intermediate_size": 48, "sliding_window": 9, **GQA},
    "qwen2": {"intermediate_size": 48, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1, **GQA},
    "qwen3": {"intermediate_size": 48, **GQA},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    # narrower ones of these two loop
    "gpt_neox": {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 1.0},
    "opt": {"hidden_size": 64, "ffn_dim": 128, "dropout": 0.0, "init_std": 0.5, "pad_token_id": 0},
}


def tiny_model(
    family: str,
    layers: int = 4,
    vocabulary: int = 96,
    context: int = 160,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **changes: Any,
) -> PreTrainedModel:
    """A random model, 32 or 64 wide, 4 heads."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": context,
        "initializer_range": 0.5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(family, **{**sizes, **OWN[family], **changes})
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


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


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {family: partial(tiny_model, family) for family in OWN}


@pytest.fixture(params=sorted(FAMILIES))
def tiny(request: pytest.FixtureRequest) -> Callable[..., PreTrainedModel]:
    """`tiny(layers=..., seed=...)` makes a random model; the test runs once per family."""
    return FAMILIES[request.param]


@pytest.fixture
def families() -> dict[str, Callable[..., PreTrainedModel]]:
    """Every family's `tiny` by name."""
    return FAMILIES


@pytest.fixture(params=["gpt2", "llama"])
def tiny_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A float32 tiny model with its tokenizer, saved as transformers saves it; once for each way to store weights."""
    return save_tiny(request.param, tmp_path / f"target-{request.param}")


def save_tiny(family: str, folder: Path, **changes: Any) -> Path:
    """Such a folder of any family."""
    FAMILIES[family](vocabulary=128, dtype=torch.float32, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_target() -> Callable[..., Path]:
    """`tiny_target(family, folder, layers=...)` saves a model of that family with its tokenizer."""
    return save_tiny


@pytest.fixture
def extra_models() -> Path:
    """A folder of real small models, named by DRAFTER_TEST_MODELS; tests that need it skip without."""
    folder = os.environ.get("DRAFTER_TEST_MODELS", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real models: set DRAFTER_TEST_MODELS to a folder that holds them")
    return Path(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub on this machine, which this process's client talks to; its cache and token lie in tmp_path/hf."""
    with HubServer() as server:
        server.point_client(monkeypatch, tmp_path / "hf")
        yield server
