"""Makes drafters out of targets, and runs both: `from factory import build, load_drafter, pull`.

Imports nothing heavy, since `factory --help` must be instant: what a program calls is loaded when it is asked for.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from factory.logs import quieten as _quieten

if _TYPE_CHECKING:
    from factory.api.drafting import LoadedDrafter, Written, load_drafter
    from factory.api.fetching import pull
    from factory.api.making import build

__version__ = "0.1.0"

# torchao comes with gptqmodel, and transformers imports it wherever it is installed: it warns of each of its binaries
# that does not fit this machine, and torch of how it registers itself. No model here runs on either.
_quieten("torchao", "torch.utils._pytree")

_HOMES = {
    "LoadedDrafter": "factory.api.drafting",
    "Written": "factory.api.drafting",
    "load_drafter": "factory.api.drafting",
    "build": "factory.api.making",
    "pull": "factory.api.fetching",
}
__all__ = ["LoadedDrafter", "Written", "__version__", "build", "load_drafter", "pull"]


def __getattr__(name: str) -> _Any:
    """What `_HOMES` names, loaded now."""
    if name not in _HOMES:
        raise AttributeError(f"module 'factory' has no attribute {name!r}")
    return getattr(_import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
