"""`python -m passionsr_lab.bench fullsize`, which is `python -m passionsr_lab bench fullsize`."""

import sys

from ..cli.main import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
