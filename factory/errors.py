"""Every failure that a user can cause or mend. The command line prints the message and exits with 2.

A message names the file, line or key, says what is wrong, and ends with the remedy.
"""


class FactoryError(Exception):
    """The base: catch this, print it, exit 2."""


class RecipeError(FactoryError):
    """A recipe or plan that cannot be run. The message lists all faults at once, each with file:line."""


class UnsupportedModel(FactoryError):  # noqa: N818 - the term users search for
    """An architecture, or an edit of one, that cannot be done, with the reason."""


class ArtifactError(FactoryError):
    """A missing, incomplete, damaged or foreign artifact folder."""


class DataError(FactoryError):
    """Prompts or text that cannot be read or do not fit."""


class ModelError(FactoryError):
    """A model folder or Hub name that cannot be loaded."""
