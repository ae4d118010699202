"""Judges drafters by measured speculative decoding. Use `from eval.x import y`: `import eval` shadows a builtin."""
