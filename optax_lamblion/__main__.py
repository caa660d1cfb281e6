"""`python -m optax_lamblion` is the command `optax-lamblion`."""

import sys

from optax_lamblion.cli import main

if __name__ == "__main__":
    sys.exit(main())
