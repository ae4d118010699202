"""All that is asked of the Hugging Face Hub for reading, and what is said where it fails. No torch.

Whatever its client raises becomes one message: what was wanted of which repository, what is wrong, how to mend it.
"""

from factory.hub.config import NoConfig, config_or_reason, hub_access, hub_config, snapshot
from factory.hub.failures import failure, first_line, hub_errors, without_token
from factory.hub.fetching import diagnose, download
from factory.hub.names import Asked, is_hub_name, require_hub_name

__all__ = [
    "Asked",
    "NoConfig",
    "config_or_reason",
    "diagnose",
    "download",
    "failure",
    "first_line",
    "hub_access",
    "hub_config",
    "hub_errors",
    "is_hub_name",
    "require_hub_name",
    "snapshot",
    "without_token",
]
