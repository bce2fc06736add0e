"""`python -m fusionrun`, and what torchrun starts with `-m fusionrun`."""

import sys

from fusionrun.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
