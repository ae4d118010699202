"""Runs a transformers model as it is, through the row cache."""

from __future__ import annotations

import inspect

import torch
from transformers import PreTrainedModel

from factory.decoding.reader import SLIDING, Reader
from factory.decoding.spread import SpreadCache
from factory.errors import UnsupportedModel
from factory.models.loading import context_length
from factory.models.placement import entry_device, layer_devices


class EagerReader(Reader):
    """Any transformers model whose positions can be given per row; slow, because its Python is transformers'.

    Raises UnsupportedModel for a model whose state cannot be cut by length or whose positions cannot
    be given per row.
    """

    name = "eager"

    def __init__(self, model: PreTrainedModel) -> None:
        refuse_what_cannot_be_rewound(model)
        self.model = model
        config = model.config
        kinds = set(getattr(config, "layer_types", None) or ())
        super().__init__(
            layers=config.num_hidden_layers,
            context=context_length(model),
            vocabulary=int(model.get_output_embeddings().weight.shape[0]),
            device=entry_device(model),
            window=window_of(model),
            kinds=sorted(kinds) if SLIDING in kinds else (),  # such a model takes one mask a kind
            # transformers 5.17 makes OPT a mask of its own, of the new tokens only, where none is given
            needs_mask=config.model_type == "opt",
            mask_dtype=model.dtype if config._attn_implementation == "eager" else None,
        )
        devices = layer_devices(model)
        if len(set(devices)) > 1:  # tokens, positions and masks are moved from layer to layer by the model's own hooks
            self._cache = SpreadCache(devices)

    def _run(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | dict[str, torch.Tensor] | None,
        keep: int | torch.Tensor,
    ) -> torch.Tensor:
        output = self.model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = output.logits
        return logits


def window_of(model: PreTrainedModel) -> int | None:
    """Positions that a sliding layer looks back, its own counted; None where every layer sees everything."""
    width = getattr(model.config, "sliding_window", None)
    kinds = getattr(model.config, "layer_types", None)
    return None if width is None or (kinds and SLIDING not in kinds) else int(width)


def refuse_what_cannot_be_rewound(model: PreTrainedModel) -> None:
    """Raises UnsupportedModel, with the reason, for a model whose cache cannot be cut by length or given positions."""
    config = model.config
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    other = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention", SLIDING})
    reason = None
    if config.is_encoder_decoder:
        reason = "it has an encoder; only decoder-only models are read"
    elif model._is_stateful or any("attention" not in kind for kind in other):
        reason = "it keeps a recurrent state, which cannot be rewound to an earlier token"
    elif other:
        reason = f"it has layers of {', '.join(other)}, which this reader does not mask"
    elif "position_ids" not in inspect.signature(model.forward).parameters:
        reason = "it takes no position ids, so rows of different lengths cannot be told apart"
    elif rope in ("dynamic", "longrope"):
        reason = f"its rope_type {rope} changes stored positions as the text grows"
    elif config._attn_implementation not in ("sdpa", "eager"):
        reason = f"its attention is {config._attn_implementation}; load it with attn_implementation='sdpa'"
    if reason:
        raise UnsupportedModel(f"{config.model_type} cannot be decoded here: {reason}")
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
