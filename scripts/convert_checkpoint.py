"""`cagnet-hf convert_checkpoint` in a clone: `python scripts/convert_checkpoint.py --help` tells what it takes."""

import sys

from cagnet_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert_checkpoint", *sys.argv[1:]]))
