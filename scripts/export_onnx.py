"""Write a trained model as an ONNX file, for runtimes without Python.

python scripts/export_onnx.py --model outputs/scenes/model --output model.onnx
"""

import argparse
import sys
from pathlib import Path

# This folder has an evaluate.py, which must not hide the library of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Write the segmenter as an ONNX file of free batch, height and width that carries class names, "
        "ids and the preparation of images as metadata, and compare it with PyTorch in onnxruntime. "
        "Needs pip install 'cagnet-hf[onnx]'."
    )
    parser.add_argument("--model", required=True, help="model folder, Hub id, or ID@REVISION")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="ONNX file to write")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from cagnet_hf.apps.export import export_onnx
    from cagnet_hf.cli import run
    from cagnet_hf.weights.folders import load_model

    def export():
        if args.output.is_dir():
            raise ValueError(f"{args.output} is a folder: name the file to write")
        difference = export_onnx(*load_model(args.model), args.output)
        size = args.output.stat().st_size / 2**20
        print(
            f"Wrote {args.output} ({size:.1f} MiB); it differs from PyTorch by {difference:.0e} of the largest logit"
        )

    return run(export)


if __name__ == "__main__":
    sys.exit(main())
