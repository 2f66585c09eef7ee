"""`python -m mlxd`."""

import sys

from mlxd.cli import main

if __name__ == "__main__":
    sys.exit(main())
