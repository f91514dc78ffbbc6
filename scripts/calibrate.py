"""`cagnet-hf calibrate` in a clone: `python scripts/calibrate.py --help` tells what it takes."""

import sys

from cagnet_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["calibrate", *sys.argv[1:]]))
