"""What a model is like: where things sit in each architecture, its shape, and what an edit leaves of it. No torch."""
