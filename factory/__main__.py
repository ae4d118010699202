"""`python -m factory`, and `accelerate launch -m factory build ...`."""

from factory.cli import main

if __name__ == "__main__":  # a worker process imports this file under another name
    main()
