"""Where drafting pays: speedup over batch, temperature and context length, and the rule that follows from it."""
