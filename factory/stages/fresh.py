"""New random weights in the drafter's shape: what inheriting the target's weights is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from factory.given import Given
from factory.stages.base import TrainingStage

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Fresh(TrainingStage):
    """Forgets the weights and keeps the shape, as where a drafter is trained from nothing.

    Initialised as transformers initialises that family, from its config's `initializer_range`. A model of
    random weights drafts nothing, so a distillation must follow.
    """

    kind: Literal["fresh"] = Field(description="new random weights in the drafter's shape; a control")
    version: ClassVar[int] = 1
    inherit: tuple[Literal["embedding", "head"], ...] = Field(
        default=(), description="what stays of the target; a head that is tied to the embedding stays with it"
    )

    @property
    def needs_text(self) -> bool:
        """It looks at nothing."""
        return False

    @property
    def uses_seed(self) -> bool:
        """The weights are drawn."""
        return True

    def apply(self, drafter: PreTrainedModel, given: Given) -> dict[str, Any]:
        """Draw new weights, in place; those of one seed and one shape are equal."""
        import torch
        from transformers import AutoModelForCausalLM

        kept = {
            "embedding": drafter.get_input_embeddings().weight.detach().clone(),
            "head": drafter.get_output_embeddings().weight.detach().clone(),
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(given.seed)
            drawn = AutoModelForCausalLM.from_config(drafter.config, dtype=torch.float32)
        drafter.load_state_dict(drawn.state_dict())
        places = {"embedding": drafter.get_input_embeddings(), "head": drafter.get_output_embeddings()}
        with torch.no_grad():
            for name in self.inherit:
                places[name].weight.copy_(kept[name])
        return {"drawn_parameters": sum(weight.numel() for weight in drafter.parameters())}
