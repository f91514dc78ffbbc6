"""Choose the calibration of a projection (SPNet-c) on held-out seen classes.

accelerate launch scripts/train.py --recipe scenes/spnet --output_dir outputs/tuning split=tuning
python scripts/calibrate.py --model outputs/tuning/model --dataset scenes:0 --apply_to outputs/spnet/model
"""

import argparse
import json
import sys
from pathlib import Path

# This folder has an evaluate.py, which must not hide the library of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Score a model at every calibration of a grid in one pass and choose the one of the highest hIoU. "
        "Choose on a model trained with split=tuning, whose unseen classes are held-out seen ones.",
    )
    parser.add_argument("--model", required=True, help="folder of a model trained with split=tuning")
    parser.add_argument("--dataset", required=True, help="prepared folder, Hub id, or scenes:SEED")
    parser.add_argument(
        "--split", default="test", help="split of the dataset (default: test; unseen classes count as ignored)"
    )
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--mask_column", default="mask")
    parser.add_argument("--benchmark", help="name or class table of the masks' classes (default: the dataset's own)")
    parser.add_argument(
        "--label_map", metavar="YAML", help="ids of a dataset that counts otherwise: '{1: dog, 7: null}'"
    )
    parser.add_argument("--streaming", action="store_true", help="read rows as they are needed")
    parser.add_argument("--apply_to", type=Path, help="model folder whose config.json gets the chosen calibration")
    parser.add_argument("--output", type=Path, help="JSON file for the scores of the whole grid")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from accelerate import PartialState

    from cagnet_hf.cli import run
    from cagnet_hf.data.sources import open_with_classes
    from cagnet_hf.evaluation.calibration import best_gamma, calibration_curve, check_choosable
    from cagnet_hf.evaluation.scoring import check_classes
    from cagnet_hf.files import write_text_whole
    from cagnet_hf.hub.cards.calibrated import calibrated_card
    from cagnet_hf.weights.folders import load_model

    def calibrate():
        applied = None
        if args.apply_to is not None:
            config_file = args.apply_to / "config.json"
            applied = json.loads(config_file.read_text(encoding="utf-8"))
            if applied.get("model_type") != "cagnet":
                raise ValueError(f"{config_file}: not the configuration of a model of this package")
        dataset, benchmark = open_with_classes(
            args.dataset,
            args.split,
            benchmark=args.benchmark,
            label_map=args.label_map,
            image_column=args.image_column,
            mask_column=args.mask_column,
            streaming=args.streaming,
        )
        model, processor = load_model(args.model)
        check_classes(model.config, benchmark, args.dataset)
        check_choosable(model.config, benchmark, args.model)
        if applied is not None and model.config.num_labels >= len(applied["id2label"]):
            raise ValueError(
                f"{args.model} knows {model.config.num_labels} classes, {args.apply_to} {len(applied['id2label'])}: "
                "choose on a model trained with split=tuning, which knows fewer"
            )
        curve = calibration_curve(model, processor, dataset)
        if not PartialState().is_main_process:
            return
        chosen = best_gamma(curve)
        for gamma, metrics in curve.items():
            columns = "  ".join(f"{key} {metrics[key] or 0.0:.4f}" for key in ("S-mIoU", "U-mIoU", "hIoU"))
            print(f"{'*' if gamma == chosen else ' '} gamma {gamma:.2f}  {columns}")
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            write_text_whole(args.output, json.dumps({"chosen": chosen, "curve": curve}, indent=1))
        if applied is not None:
            card = args.apply_to / "README.md"
            if card.is_file():
                text = calibrated_card(card.read_text(encoding="utf-8"), chosen, applied.get("calibration", 0.0))
                write_text_whole(card, text)
            write_text_whole(config_file, json.dumps(applied | {"calibration": chosen}, indent=2) + "\n")
            print(f"Wrote calibration {chosen} to {config_file}")

    return run(calibrate)


if __name__ == "__main__":
    sys.exit(main())
