"""All that is asked of the Hugging Face Hub for reading, and what is said where it fails. No torch.

Whatever its client raises becomes one message: what was wanted of which repository, what is wrong, how to mend it.
"""

from factory.hub.config import hub_access, hub_config, hub_reason, snapshot
from factory.hub.download import diagnose, download
from factory.hub.failures import first_line, hub_errors, without_token
from factory.hub.names import Asked, is_hub_name, require_hub_name

__all__ = [
    "Asked",
    "diagnose",
    "download",
    "first_line",
    "hub_access",
    "hub_config",
    "hub_errors",
    "hub_reason",
    "is_hub_name",
    "require_hub_name",
    "snapshot",
    "without_token",
]
