"""Bounds that both the work and its forecast go by; here, since a forecast imports no torch."""

SCORED_ROWS = 64  # rows of text that activation-based scores look at
REMEMBERED_BYTES = 2 << 30  # of the target's hidden states that are kept in memory, not computed anew each epoch
