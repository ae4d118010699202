"""Pure functions, tensors in and tensors out: no model classes, no files, no clock."""
