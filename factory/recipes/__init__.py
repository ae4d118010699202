"""A recipe: strict, line by line, with its grid's candidates and their digests. No torch."""
