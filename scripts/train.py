"""`cagnet-hf train` in a clone: `accelerate launch scripts/train.py --recipe scenes …` starts it."""

import sys

from cagnet_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
