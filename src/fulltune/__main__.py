"""`python -m fulltune`."""

from fulltune.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
