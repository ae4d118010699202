"""The console script, `python -m factory`, and `accelerate launch -m factory build ...`."""

from factory.interrupts import end_where_interrupted, watch
from factory.logs import stand_in


def main() -> None:
    """Watch for signals first: the command line's own imports take a moment, in which Ctrl-C may come."""
    stand_in()
    try:
        watch()
        from factory.cli import main as command_line

        command_line()
    finally:
        end_where_interrupted()


if __name__ == "__main__":  # a worker process imports this file under another name
    main()
