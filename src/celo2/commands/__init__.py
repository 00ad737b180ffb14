"""What the command line does, one module for each of `celo2`'s commands."""
