"""The commands of the `celo2` command line, one module each."""
