"""`python -m colo_lib.cli`."""

import sys

from colo_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
