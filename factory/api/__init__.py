"""What a program calls: `from factory import build, load_drafter`. The command line calls the same functions."""
