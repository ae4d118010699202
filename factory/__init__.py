"""Makes drafters out of targets, and runs both. Imports nothing heavy: `factory --help` must be instant."""

__version__ = "0.1.0"
