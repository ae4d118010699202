"""Keep some layers, drop the rest: the stage that makes a drafter fast (latency follows depth)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from factory.edit import Edit, Shape
from factory.errors import UnsupportedModel
from factory.stages.base import Given, StructuralStage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCORED_ROWS = 64  # rows of text that activation-based scores look at


class DropLayers(StructuralStage):
    """`keep`: a number of layers, a fraction that stays (0.25), or an explicit list of indices.

    score:
        even              spread over the depth, first and last included
        first_last        the first layers and the very last one
        block_influence   the layers that change the residual stream most, 1 - cos(in, out)
                          (ShortGPT, arXiv 2403.03853); needs text
    """

    kind: Literal["drop_layers"]
    keep: int | float | list[int] = Field(description="layers that stay: a number, a fraction, or a list of indices")
    score: Literal["even", "first_last", "block_influence"] = "even"

    @model_validator(mode="after")
    def _keep_is_possible(self) -> DropLayers:
        if isinstance(self.keep, list):
            if not self.keep or sorted(set(self.keep)) != self.keep or self.keep[0] < 0:
                raise ValueError(f"keep: a list must be rising layer indices from 0, got {self.keep}")
        elif isinstance(self.keep, float) and not 0 < self.keep < 1:
            raise ValueError(
                f"keep: a fraction must lie between 0 and 1, got {self.keep}; for a count write {self.keep:.0f}"
            )
        elif isinstance(self.keep, int) and self.keep < 1:
            raise ValueError(f"keep: at least 1 layer must stay, got {self.keep}")
        return self

    @property
    def needs_text(self) -> bool:
        """Only an activation-based score runs the model."""
        return self.score == "block_influence" and not isinstance(self.keep, list)

    def count(self, layers: int) -> int:
        """How many of `layers` stay. Raises UnsupportedModel where there are not enough."""
        if isinstance(self.keep, list):
            if self.keep[-1] >= layers:
                raise UnsupportedModel(
                    f"drop_layers: keep names layer {self.keep[-1]}, the model has 0 to {layers - 1}"
                )
            return len(self.keep)
        count = max(1, round(self.keep * layers)) if isinstance(self.keep, float) else self.keep
        if count > layers:
            raise UnsupportedModel(f"drop_layers: keep is {count}, the model has {layers} layers")
        return count

    def forecast(self, shape: Shape) -> Shape:
        """Fewer layers, all else equal."""
        return replace(shape, layers=self.count(shape.layers))

    def measure(self, model: PreTrainedModel, given: Given) -> list[float]:  # [L]
        """Block influence of each layer: mean over the text's positions of 1 - cos(in, out)."""
        if not self.needs_text or given.text is None:
            return []
        import torch

        from factory.anatomy import anatomy_of
        from factory.tensors.saliency import block_influence

        layers = model.get_submodule(anatomy_of(model.config.to_dict()).layers)
        totals = [0.0] * len(layers)
        mask = torch.empty(0)

        def record(index: int) -> Callable[[Any, tuple[Any, ...], Any], None]:
            def hook(_module: Any, inputs: tuple[Any, ...], output: Any) -> None:
                after = output[0] if isinstance(output, tuple) else output
                totals[index] += block_influence(inputs[0], after, mask).item()

            return hook

        hooks = [layer.register_forward_hook(record(index)) for index, layer in enumerate(layers)]
        positions = 0
        rows = given.text.rows(range(min(len(given.text), SCORED_ROWS)))
        try:
            for start in range(0, len(rows), 8):
                batch = rows.rows(range(start, min(start + 8, len(rows))))
                ids = batch.ids.to(model.device)
                mask = batch.token_mask.to(model.device)
                with torch.no_grad():
                    model.base_model(input_ids=ids, use_cache=False)
                positions += int(mask.sum())
                given.progress(start + len(batch), len(rows), "scoring layers")
        finally:
            for hook in hooks:
                hook.remove()
        return [total / positions for total in totals]

    def decide(self, shape: Shape, scores: list[float]) -> Edit:
        """Which layers stay, in their order."""
        count = self.count(shape.layers)
        if isinstance(self.keep, list):
            return Edit(keep_layers=tuple(self.keep))
        if self.score == "first_last" and count > 1:
            return Edit(keep_layers=(*range(count - 1), shape.layers - 1))
        if self.score == "block_influence":
            best = sorted(range(shape.layers), key=lambda layer: (-scores[layer], layer))[:count]
            return Edit(keep_layers=tuple(sorted(best)))
        if count == 1:
            return Edit(keep_layers=(0,))
        return Edit(keep_layers=tuple(round(i * (shape.layers - 1) / (count - 1)) for i in range(count)))
