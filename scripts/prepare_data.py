"""`cagnet-hf prepare_data` in a clone: `python scripts/prepare_data.py --help` tells what it takes."""

import sys

from cagnet_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare_data", *sys.argv[1:]]))
