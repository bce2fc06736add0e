"""`python -m fusionrun`, and what torchrun starts with `-m fusionrun`."""

import sys

from fusionrun.cli import end_process, main

if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
