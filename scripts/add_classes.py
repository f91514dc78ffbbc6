"""`cagnet-hf add_classes` in a clone: `python scripts/add_classes.py --help` tells what it takes."""

import sys

from cagnet_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["add_classes", *sys.argv[1:]]))
