"""The only place that loads and saves models and tokenizers (a GPTQ folder by way of `quantized`).

dtype and device are always explicit (transformers' own default became "auto"); no remote code is
ever run; only safetensors are read. A model that leaves here is in eval mode and needs no gradient.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from factory.errors import ModelError
from factory.logs import hand_over, quieten
from factory.models.located import load_failure
from factory.models.placement import WHOLE, Placement, held_tensors
from factory.models.quantized import is_quantized, load_quantized

transformers.utils.logging.disable_progress_bar()
# accelerate warns of weights on the CPU or on disk: `why_divided` says it.
quieten("transformers", "huggingface_hub", "accelerate")
hand_over("torch")

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """The dtype of that name; `auto` is float32 on a CPU and bfloat16 elsewhere. Raises ModelError."""
    if name == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise ModelError(f"dtype {name}: must be auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def resolve_device(name: str) -> str:
    """The device of that name; `auto` is CUDA where there is one, else the CPU. Raises ModelError."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch("cpu|cuda(:[0-9]+)?", name):
        raise ModelError(f"device {name}: must be auto, cpu, cuda, or one GPU such as cuda:1")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device {name}: torch finds no CUDA device here; write `device: cpu` or `device: auto`")
    return name


def fingerprint(model: PreTrainedModel) -> int:
    """A 64-bit sum over the raw bits of every tensor: equal before and after means unchanged.

    Computed where the tensors lie, of a divided model over what this process holds of it. Each element
    is weighted by its index, so that a swap shows.
    """
    total = 0
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    for _, tensor in held_tensors(model):
        bits = tensor.detach().contiguous().view(-1).view(integers[tensor.element_size()])
        for start in range(0, bits.numel(), 1 << 24):  # bounded memory for the int64 copy
            part = bits[start : start + (1 << 24)].long()
            weights = torch.arange(start + 1, start + 1 + part.numel(), device=part.device)
            total = (total * 31 + int((part * weights).sum())) % 2**64
    return total


def require_finite(model: PreTrainedModel) -> None:
    """Raises ModelError naming the tensors that hold a NaN or an infinity: such a target cannot be followed."""
    weights = {name for name, _ in model.named_parameters()}
    held = ((name, weight) for name, weight in held_tensors(model) if name in weights)
    damaged = [name for name, weight in held if not bool(torch.isfinite(weight).all())]
    if damaged:
        raise ModelError(
            f"{model.config.name_or_path}: NaN or infinite weights in {', '.join(damaged[:3])}"
            f"{' and others' if len(damaged) > 3 else ''}: the checkpoint is damaged; get it again"
        )


_IN_FILES = {"embed_out.weight": "lm_head.weight"}  # GPT-NeoX: what a file calls the head, and what the module does


def require_fit(config: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    """Raises ModelError unless transformers builds exactly those tensors from that config. Allocates no weights."""
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    wanted = {name: list(tensor.shape) for name, tensor in made.state_dict().items()}
    shapes = {_IN_FILES.get(name, name): shape for name, shape in shapes.items()}
    tied = set(made.all_tied_weights_keys)
    missing = sorted(name for name in wanted if name not in shapes and name not in tied)
    left_over = sorted(set(shapes) - set(wanted))
    other = sorted(name for name in shapes if name in wanted and shapes[name] != wanted[name])
    if missing or left_over or other:
        raise ModelError(
            f"the edited model does not fit its config: missing {missing[:5]}, left over {left_over[:5]}, "
            f"of another shape {other[:5]}; "
            f"is this a checkpoint of {config.get('model_type')} as transformers writes it?"
        )


def new_model(
    config: dict[str, Any], tensors: Iterable[tuple[str, torch.Tensor]], like: PreTrainedModel
) -> PreTrainedModel:
    """A new model of that config which holds copies of those tensors; dtype, device and generation settings of `like`.

    Raises ModelError where a tensor is missing or left over.
    """
    held = dict(tensors)
    require_fit(config, {name: list(tensor.shape) for name, tensor in held.items()})
    made = AutoModelForCausalLM.from_config(type(like.config).from_dict(config), dtype=like.dtype)
    made.load_state_dict(held, strict=False)
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


def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype,
    device: str = "cpu",
    revision: str | None = None,
    placement: Placement = WHOLE,
) -> PreTrainedModel:
    """A causal language model from a folder or Hub name, frozen, in eval mode. Raises ModelError.

    A GPTQ folder's model may run in another dtype than asked for: what its kernels take (`load_quantized`).
    `placement` divides it over several devices, and `device` is then not asked; what divides it over
    processes is called in all of them at once, each connected to the others before.
    """
    if is_quantized(Path(source)):
        if not placement.whole:
            raise ModelError(f"{source}: GPTQ weights are read on one device only: leave out what divides the model")
        return load_quantized(Path(source), dtype=dtype, device=device)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(source),
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            **_divided(placement),
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise load_failure(str(source), error) from error
    model.requires_grad_(False)
    return (model.to(device) if placement.whole else model).eval()


def _divided(placement: Placement) -> dict[str, Any]:
    """What from_pretrained is told of a placement."""
    if placement.processes > 1:
        from transformers.distributed import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_size=placement.processes)}
    if placement.device_map is not None:
        memory = dict(placement.max_memory) if placement.max_memory is not None else None
        return {"device_map": placement.device_map, "max_memory": memory}
    return {}


def load_tokenizer(source: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub name. Raises ModelError."""
    try:
        return AutoTokenizer.from_pretrained(str(source), revision=revision, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise load_failure(str(source), error) from error


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
    candidates = [model.config.bos_token_id, *sorted(eos_token_ids(model))]
    first = next((int(token) for token in candidates if token is not None and token < model.config.vocab_size), None)
    if first is None:
        raise ModelError(
            f"{model.config.name_or_path or model.config.model_type} names neither a BOS nor an EOS token that is in "
            "its vocabulary: `prompts: bos` cannot begin a text; give a prompts file instead"
        )
    return first
