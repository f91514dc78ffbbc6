"""`cagnet-hf from_names` in a clone: `python scripts/from_names.py --help` tells what it takes."""

import sys

from cagnet_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["from_names", *sys.argv[1:]]))
