"""Teach a trained model new classes by their names, or remove and rename classes; no image is needed.

python scripts/add_classes.py --model outputs/voc/model --class zebra --class "traffic cone" --output outputs/voc_zebra
python scripts/add_classes.py --model outputs/voc/model --remove sofa --rename tv=television --output outputs/voc_19
"""

import argparse
import json
import sys
from pathlib import Path

# This folder has an evaluate.py, which must not hide the library of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Add, remove and rename classes of a trained model. New classes are unseen ones: the model's "
        "generator makes features of them from their embeddings, and the classifier learns these within seconds."
    )
    parser.add_argument("--model", required=True, help="model folder, Hub id, or ID@REVISION")
    parser.add_argument(
        "--class", dest="new", action="append", default=[], metavar="NAME", help="a class to add; may be repeated"
    )
    parser.add_argument("--remove", action="append", default=[], metavar="NAME", help="a class to remove")
    parser.add_argument("--rename", action="append", default=[], metavar="OLD=NEW", help="a class to rename")
    parser.add_argument(
        "--class_embeddings",
        metavar="TABLE",
        help="bundled, or tables of scripts/prepare_embeddings.py separated by commas, from the source of the model's "
        "own embeddings and with one of its own classes in them (default: what the model was trained with)",
    )
    parser.add_argument(
        "--encoder", metavar="DIR_OR_ID", help="where the text encoder of the model's own embeddings lies"
    )
    parser.add_argument(
        "--dataset_ids", type=int, nargs="+", metavar="ID", help="ids of the new classes in masks (the next free ones)"
    )
    parser.add_argument(
        "--bias",
        type=float,
        default=0.0,
        help="added to the scores of the new classes: above 0 they win more pixels, right and wrong ones (default: 0)",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument(
        "--dataset", help="prepared folder, Hub id or scenes:SEED: score the model before and after on its test split"
    )
    parser.add_argument("--scores", type=Path, help="JSON file for these scores")
    parser.add_argument("--seed", type=int, default=0, help="of the made features")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from cagnet_hf.cli import run

    return run(lambda: edit(args))


def edit(args: argparse.Namespace) -> None:
    import time

    from cagnet_hf.data.sources import open_dataset
    from cagnet_hf.evaluation.new_classes import score_after, score_before
    from cagnet_hf.files import write_text_whole
    from cagnet_hf.hub.cards.edited import edited_model_card
    from cagnet_hf.vectors.new_classes import embed_new_classes
    from cagnet_hf.weights.folders import load_model, save_model_folder

    renamed = parse_renamings(args.rename)
    if not (args.new or args.remove or renamed):
        raise ValueError("nothing to do: give --class, --remove or --rename")
    if args.dataset_ids and len(args.dataset_ids) != len(args.new):
        raise ValueError(f"{len(args.dataset_ids)} --dataset_ids for {len(args.new)} --class: give one for each")
    if args.output.exists():
        raise FileExistsError(f"--output {args.output} exists; choose another")
    if bool(args.dataset) != bool(args.scores) or (args.dataset and not args.new):
        raise ValueError("--dataset and --scores go together, with --class")
    dataset = open_dataset(args.dataset, "test") if args.dataset else None
    model, processor = load_model(args.model)
    if args.remove:
        model.remove_classes(args.remove)
    if renamed:
        model.rename_classes(renamed)
    if args.new:
        embeddings = embed_new_classes(model, args.new, args.class_embeddings, encoder=args.encoder)
        before = score_before(model, processor, dataset) if dataset else None
        started = time.monotonic()
        model.add_classes(args.new, embeddings, dataset_ids=args.dataset_ids, bias=args.bias, seed=args.seed)
        seconds = time.monotonic() - started
        print(f"Learnt {', '.join(args.new)} in {seconds:.1f} s")
        if dataset:
            scores = score_after(model, processor, dataset, before) | {"seconds": round(seconds, 2)}
            args.scores.parent.mkdir(parents=True, exist_ok=True)
            write_text_whole(args.scores, json.dumps(scores, indent=1) + "\n")
            print("mIoU of the old classes {before:.4f} before, {after:.4f} after".format(**scores["old_mIoU"]))
            for name, entry in scores["new"].items():
                print(f"{name}: IoU {'undefined' if entry['iou'] is None else format(entry['iou'], '.4f')}")
    card = edited_model_card(model.config, args.model, args.new)
    save_model_folder(model, processor, args.output, card)
    print(f"Wrote {args.output}: {', '.join(model.config.id2label.values())}")


def parse_renamings(pairs: list[str]) -> dict[str, str]:
    """`OLD=NEW` of each."""
    wrong = next((pair for pair in pairs if not all(pair.partition("="))), None)
    if wrong is not None:
        raise ValueError(f"--rename {wrong}: write OLD=NEW")
    return dict(pair.split("=", 1) for pair in pairs)


if __name__ == "__main__":
    sys.exit(main())
