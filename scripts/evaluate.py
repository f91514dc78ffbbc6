"""Score a model on a dataset.

python scripts/evaluate.py --model outputs/scenes/model --dataset scenes:0 --output metrics.json
"""

import argparse
import json
import sys
from pathlib import Path

# This folder has an evaluate.py, which must not hide the library of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Score a model on the seen and unseen classes of a dataset.")
    parser.add_argument("--model", required=True, help="model folder, Hub id, or ID@REVISION")
    parser.add_argument("--dataset", required=True, help="prepared folder, Hub id, or scenes:SEED")
    parser.add_argument("--split", default="test", help="split of the dataset (default: test)")
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--mask_column", default="mask")
    parser.add_argument("--benchmark", help="name or class table of the masks' classes (default: the dataset's own)")
    parser.add_argument(
        "--label_map", metavar="YAML", help="ids of a dataset that counts otherwise: '{1: dog, 7: null}'"
    )
    parser.add_argument("--streaming", action="store_true", help="read rows as they are needed")
    parser.add_argument(
        "--protocol",
        choices=("full", "paper"),
        default="full",
        help="full: original image size (default); paper: warped square, feature resolution",
    )
    parser.add_argument(
        "--gamma", type=_share, help="calibration: subtract GAMMA from the seen classes' probabilities (model's own)"
    )
    parser.add_argument("--batch_size", type=_positive, default=8, help="images of equal size per batch")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from accelerate import Accelerator

    from cagnet_hf.cli import run
    from cagnet_hf.data.sources import open_with_classes
    from cagnet_hf.evaluation.scoring import check_classes, score
    from cagnet_hf.files import write_text_whole
    from cagnet_hf.weights.folders import load_model

    def evaluate():
        if args.output and args.output.is_dir():
            raise IsADirectoryError(f"{args.output} is a folder: name the JSON file to write")
        accelerator = Accelerator()
        dataset, classes = open_with_classes(
            args.dataset,
            args.split,
            benchmark=args.benchmark,
            label_map=args.label_map,
            image_column=args.image_column,
            mask_column=args.mask_column,
            streaming=args.streaming,
        )
        model, processor = load_model(args.model)
        check_classes(model.config, classes, args.dataset)
        if args.gamma is not None:
            model.config.calibration = args.gamma
        metrics = score(
            model.to(accelerator.device),
            processor,
            dataset,
            protocol=args.protocol,
            batch_size=args.batch_size,
            accelerator=accelerator,
        )
        if accelerator.is_main_process:
            for key in ("S-mIoU", "U-mIoU", "hIoU", "mIoU", "PA", "MA", "U-PA", "U-MA"):
                print(f"{key:7}", "undefined" if metrics[key] is None else f"{metrics[key]:.4f}")
            if args.output:
                args.output.parent.mkdir(parents=True, exist_ok=True)
                write_text_whole(args.output, json.dumps(metrics, indent=1))

    return run(evaluate)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return share


if __name__ == "__main__":
    sys.exit(main())
