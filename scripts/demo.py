"""Open a web page to play with a trained model: drop an image, calibrate, add classes by name.

python scripts/demo.py --model outputs/scenes/model
"""

import argparse
import sys
from pathlib import Path

# This folder has an evaluate.py, which must not hide the library of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Serve a web page on this machine: drop an image and see its classes, click for scores, move the "
        "calibration, type a new class and see it segmented. Needs pip install 'cagnet-hf[demo]'."
    )
    parser.add_argument("--model", required=True, help="model folder, Hub id, or ID@REVISION")
    parser.add_argument(
        "--class_embeddings",
        metavar="TABLE",
        help="where vectors of typed names come from: bundled, or tables of scripts/prepare_embeddings.py separated "
        "by commas, from the source of the model's own (default: what the model was trained with)",
    )
    parser.add_argument(
        "--encoder", metavar="DIR_OR_ID", help="where the text encoder of the model's own embeddings lies"
    )
    parser.add_argument("--port", type=int, help="where to listen (default: the first free one from 7860)")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from cagnet_hf.apps.demo import serve
    from cagnet_hf.cli import run

    return run(lambda: serve(args.model, class_embeddings=args.class_embeddings, encoder=args.encoder, port=args.port))


if __name__ == "__main__":
    sys.exit(main())
