"""Drafters on the Hugging Face Hub: what may be published, what is said of it, and the sending of it."""
