"""Makes drafters out of targets, and runs both. Imports nothing heavy: `factory --help` must be instant."""

from factory.logs import quieten as _quieten

__version__ = "0.1.0"

# torchao comes with gptqmodel, and transformers imports it wherever it is installed: it warns of each of its binaries
# that does not fit this machine, and torch of how it registers itself. No model here runs on either.
_quieten("torchao", "torch.utils._pytree")
