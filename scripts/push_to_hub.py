"""`cagnet-hf push_to_hub` in a clone: `python scripts/push_to_hub.py --help` tells what it takes."""

import sys

from cagnet_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["push_to_hub", *sys.argv[1:]]))
