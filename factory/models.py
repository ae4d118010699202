"""The only place that loads and saves models and tokenizers.

dtype and device are always explicit (transformers' own default became "auto"); no remote code is
ever run; only safetensors are read. A model that leaves here is in eval mode and needs no gradient.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from factory.errors import ModelError
from factory.files import write_atomically
from factory.provenance import sha256_file, sha256_text

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="transformers")

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """The dtype of that name; `auto` is float32 on a CPU and bfloat16 elsewhere."""
    if name == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    return DTYPES[name]


def resolve_device(name: str) -> str:
    """The device of that name; `auto` is CUDA where there is one, else the CPU."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


@dataclass(frozen=True)
class Located:
    """A model's files on this machine."""

    folder: Path
    revision: str | None  # the commit on the Hub; None for a folder of the user's own


def locate(source: str, revision: str | None = None) -> Located:
    """The folder of a model: itself, or a Hub snapshot (downloaded once). Raises ModelError."""
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise ModelError(f"{source} has no config.json: give the folder that transformers' save_pretrained wrote")
        return Located(Path(source).resolve(), None)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(source, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.model"])
        )
    except Exception as error:  # the client raises a dozen kinds; each is "could not get it" here
        raise _failure(source, error) from error
    return Located(folder, folder.name)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as it stands. Raises ModelError."""
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError) as error:
        raise _failure(str(folder), error) from error


def weights_identity(folder: Path, cache_file: Path | None = None) -> str:
    """sha256 over the names and sha256s of a folder's safetensors: what "the same target" means.

    Hashing reads every byte, so a file's sum is kept in `cache_file`, keyed by size and mtime.
    Raises ModelError where there is no safetensors file.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder} has no .safetensors file: save the model with transformers' save_pretrained")
    known: dict[str, str] = {}
    if cache_file is not None and cache_file.is_file():
        known = json.loads(cache_file.read_text())
    sums: dict[str, str] = {}
    for file in files:
        stat = file.resolve().stat()
        key = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        sums[file.name] = known.setdefault(key, "") or sha256_file(file)
        known[key] = sums[file.name]
    if cache_file is not None:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache_file, json.dumps(known, indent=1))
    return sha256_text("\n".join(f"{name} {digest}" for name, digest in sums.items()))


def fingerprint(model: PreTrainedModel) -> int:
    """A 64-bit sum over the raw bits of every tensor: equal before and after means unchanged.

    Computed where the tensors lie. Each element is weighted by its index, so that a swap shows.
    """
    total = 0
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    for _, tensor in sorted(model.state_dict().items()):
        bits = tensor.detach().contiguous().view(-1).view(integers[tensor.element_size()])
        for start in range(0, bits.numel(), 1 << 24):  # bounded memory for the int64 copy
            part = bits[start : start + (1 << 24)].long()
            weights = torch.arange(start + 1, start + 1 + part.numel(), device=part.device)
            total = (total * 31 + int((part * weights).sum())) % 2**64
    return total


def new_model(
    config: dict[str, Any], tensors: Iterable[tuple[str, torch.Tensor]], like: PreTrainedModel
) -> PreTrainedModel:
    """A new model of that config which holds copies of those tensors; dtype, device and generation settings of `like`.

    Raises ModelError where a tensor is missing or left over.
    """
    made = AutoModelForCausalLM.from_config(type(like.config).from_dict(config), dtype=like.dtype)
    missing, unexpected = made.load_state_dict(dict(tensors), strict=False)
    lacking = sorted(set(missing) - set(made.all_tied_weights_keys))
    if lacking or unexpected:
        raise ModelError(f"the edited model does not fit its config: missing {lacking}, left over {unexpected}")
    made.generation_config = like.generation_config
    made.requires_grad_(False)
    return made.to(like.device).eval()


def hidden_states(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Final hidden states, after the last norm, at the positions that `mask` selects.

    ids [B, T], right-padded (causal attention: padding is never seen by what comes before it);
    mask [B, T] bool; returns [N, D]. `model.get_output_embeddings()` makes logits of them.
    """
    states: torch.Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return states[mask]


def _failure(source: str, error: Exception) -> ModelError:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(source).is_dir():
        remedy = "the folder must hold config.json, *.safetensors and the tokenizer's files"
    else:
        remedy = "give a folder that exists, or a name on the Hub that this machine can reach"
    return ModelError(f"cannot load {source}: {first_line} ({remedy})")


def load_config(source: str | Path, revision: str | None = None) -> Any:
    """The config of a folder or Hub name. Raises ModelError."""
    try:
        return AutoConfig.from_pretrained(str(source), revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _failure(str(source), error) from error


def load_model(
    source: str | Path, *, dtype: torch.dtype, device: str = "cpu", revision: str | None = None
) -> PreTrainedModel:
    """A causal language model from a folder or Hub name, frozen, in eval mode. Raises ModelError."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(source), revision=revision, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise _failure(str(source), error) from error
    model.requires_grad_(False)
    return model.to(device).eval()


def load_tokenizer(source: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub name. Raises ModelError."""
    try:
        return AutoTokenizer.from_pretrained(str(source), revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _failure(str(source), error) from error


def context_length(model: PreTrainedModel) -> int:
    """Positions that the model was made for: prompt and output together must fit."""
    return int(model.config.max_position_embeddings)


def eos_token_ids(model: PreTrainedModel) -> frozenset[int]:
    """Every id that ends a text; several models have more than one. Empty where none is set."""
    ids = model.generation_config.eos_token_id if model.generation_config else None
    if ids is None:
        ids = model.config.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)


def first_token_id(model: PreTrainedModel) -> int:
    """The id that a text begins with: BOS, or EOS where there is no BOS (GPT-2). Raises ModelError."""
    bos = model.config.bos_token_id
    if bos is not None:
        return int(bos)
    eos = sorted(eos_token_ids(model))
    if not eos:
        raise ModelError(
            f"{model.config.name_or_path or model.config.model_type} names neither a BOS nor an EOS token: "
            "`prompts: bos` cannot begin a text; give a prompts file instead"
        )
    return eos[0]
