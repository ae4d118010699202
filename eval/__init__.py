"""Judges drafters by measured speculative decoding: `from eval import evaluate`.

`import eval` shadows a builtin: always import from it. What a program calls is loaded when it is asked for.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from eval.api import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]


def __getattr__(name: str) -> _Any:
    """What `eval.api` has, loaded now."""
    if name not in __all__:
        raise AttributeError(f"module 'eval' has no attribute {name!r}")
    from eval import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
