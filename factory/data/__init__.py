"""Text for a drafter: prompts and conversations, as strings, token ids and blocks; given or written by the target."""
