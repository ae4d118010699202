"""Runs a plan's arms: in batches, interleaved, within memory, going on where it stopped."""
