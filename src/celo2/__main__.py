"""Runs the command line as `python -m celo2`, for when its script is not on the path."""

from celo2.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
