"""`cagnet-hf export_onnx` in a clone: `python scripts/export_onnx.py --help` tells what it takes."""

import sys

from cagnet_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["export_onnx", *sys.argv[1:]]))
