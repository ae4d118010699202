"""Makes drafters out of targets, and runs both. Imports nothing heavy: `factory --help` must be instant."""

import logging as _logging

__version__ = "0.1.0"

# torchao comes with gptqmodel, and transformers imports it wherever it is installed: it warns of each of its binaries
# that does not fit this machine, and torch of how it registers itself. No model here runs on either.
for _noisy in ("torchao", "torch.utils._pytree"):
    _logging.getLogger(_noisy).setLevel(_logging.ERROR)
