"""`python -m fusionrun`, and what torchrun starts with `-m fusionrun`."""

import os
import sys

from fusionrun.cli import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # everything is written and closed; a thread that still waits for a dead peer would make a
    # normal exit abort
    os._exit(code)
