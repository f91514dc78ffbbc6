"""`cagnet-hf fit` in a clone: `python scripts/fit.py --help` tells what it takes."""

import sys

from cagnet_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["fit", *sys.argv[1:]]))
