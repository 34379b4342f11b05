"""`python -m passionsr_lab.bench fullsize`."""

import sys

from .fullsize import main

if __name__ == "__main__":
    sys.exit(main())
