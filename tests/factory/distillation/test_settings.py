from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from .conftest import stage_of

KL, TV = "forward_kl", "tv"


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"loss": [{"kind": KL, "weight": 0.0}]}, "every weight is 0"),
        ({"loss": [{"kind": KL, "weight": [[0.2, 1.0], [0.5, 0.0]]}]}, "every weight is 0"),
        (
            {"loss": [{"kind": KL, "weight": [[0, 1.0], [0.4, 0.0]]}, {"kind": TV, "weight": [[0.6, 0.0], [1, 1.0]]}]},
            "every weight is 0",
        ),
        (
            {
                "loss": [{"kind": "cross_entropy"}, {"kind": KL, "weight": 0.0}],
                "on_policy": {"share": 1.0},
            },
            "cross_entropy learns nothing",
        ),
        ({"loss": [{"kind": KL, "weight": float("inf")}]}, "finite number"),
        ({"lr": float("inf")}, "finite number"),
        ({"top_k": 7}, "top_k: only a teacher cache has it"),
        ({"drawn": 3}, "drawn: only a teacher cache has it"),
        ({"lora": 2, "untie_head": True}, "untie_head: with lora the head is not trained"),
        ({"optimizer": "muon", "freeze": ["layers"]}, "optimizer: muon is for the layers' matrices"),
    ],
)
def test_what_would_do_nothing_is_refused(fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        stage_of(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": [{"kind": KL, "weight": [[0, 0.0], [1, 1.0]]}]},  # 0 at one point alone
        {"loss": [{"kind": KL}, {"kind": TV, "weight": 0.0}]},  # one value of a grid
        {"loss": [{"kind": KL, "weight": [[0.3, 1.0], [0.7, 0.0]]}, {"kind": TV, "weight": [[0.3, 0.0], [0.7, 4.0]]}]},
        {"teacher": "cache", "top_k": 7, "drawn": 0},
    ],
)
def test_what_does_something_passes(fields: dict[str, Any]) -> None:
    stage_of(**fields)
