"""Reads with the project's own forward pass instead of transformers' modules."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from factory.decoding.eager import refuse_what_cannot_be_rewound, window_of
from factory.decoding.network import Mask, Rotary
from factory.decoding.reader import SLIDING, Reader
from factory.decoding.wiring import ProductMaker, network_of, plain_products, rotary_of
from factory.models.loading import context_length


class LeanReader(Reader):
    """A model as a `Network` on its own weights, with torch's products or others that `make` brings.

    Raises UnsupportedModel for a model that is in no supported family, or that cannot be rewound.
    """

    name = "lean"

    def __init__(self, model: PreTrainedModel, make: ProductMaker = plain_products) -> None:
        refuse_what_cannot_be_rewound(model)
        config = model.config
        with torch.no_grad():
            self._network = network_of(model, make)
        self._model = model
        self._rotary: Rotary | None = None  # for as many positions as were needed so far
        self._has_rotary = self._network.position_table is None
        kinds = set(getattr(config, "layer_types", None) or ())
        super().__init__(
            layers=config.num_hidden_layers,
            context=context_length(model),
            vocabulary=int(model.get_output_embeddings().weight.shape[0]),
            device=model.device,
            window=window_of(model),
            kinds=sorted(kinds) if SLIDING in kinds else (),
            mask_dtype=model.dtype,  # a bool mask would be made one anew in every layer
        )

    def _run(self, tokens: torch.Tensor, positions: torch.Tensor, mask: Mask, keep: int | torch.Tensor) -> torch.Tensor:
        room = min(self._cache.capacity, self.context)
        if self._has_rotary and (self._rotary is None or len(self._rotary.cos) < room):
            self._rotary = rotary_of(self._model, self._network.width, room)
        return self._network(tokens, positions, self._rotary, mask, self._cache, keep)
