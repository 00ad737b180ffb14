"""`python -m celo2` is the command `celo2`."""

import sys

from celo2.cli import main

sys.exit(main())
