"""`cagnet-hf evaluate` in a clone: `python scripts/evaluate.py --help` tells what it takes."""

import sys

from cagnet_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
