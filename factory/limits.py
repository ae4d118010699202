"""Bounds that both the work and its forecast go by; here, since a forecast imports no torch."""

SCORED_ROWS = 64  # rows of text that activation-based scores look at
JUDGED_ROWS = 128  # held-out rows that a training looks at
REMEMBERED_BYTES = 2 << 30  # of the target's hidden states that are kept in memory, not computed anew each epoch
READ_ROWS = 16  # rows of text in one forward pass of a model whose predictions are kept
CACHE_SHARD_ROWS = 256  # rows of text in one file of a teacher cache: a multiple of the above
LOGITS_BYTES = 64 << 20  # of float32 logits [N, V] that are held at once where predictions are kept
