"""`python -m celo2`: the command line, where its script is not on the path."""

from celo2.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
