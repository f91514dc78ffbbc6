"""`cagnet-hf recipes` in a clone: `python scripts/recipes.py` starts it."""

import sys

from cagnet_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["recipes", *sys.argv[1:]]))
