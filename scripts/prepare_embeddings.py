"""`cagnet-hf prepare_embeddings` in a clone: `python scripts/prepare_embeddings.py --help` tells what it takes."""

import sys

from cagnet_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare_embeddings", *sys.argv[1:]]))
