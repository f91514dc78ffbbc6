"""Turn a dataset as it is distributed into a folder that `datasets.load_dataset` opens.

python scripts/prepare_data.py pascal_voc --source DIR_WITH_VOCDEVKIT --output data/pascal_voc
python scripts/prepare_data.py check data/pascal_voc
"""

import argparse
import sys
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Check a dataset of images and masks; write it as Parquet files, splits train and test.",
        epilog="DATASET --help tells what each is read from. Archives are read where they lie, not unpacked.",
    )
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--source", type=Path, required=True, help="the folder or archive of the data; see the dataset's help"
    )
    common.add_argument("--output", type=Path, required=True, help="the folder to make")
    common.add_argument("--overwrite", action="store_true", help="replace a prepared dataset at --output")
    common.add_argument(
        "--skip_broken",
        action="store_true",
        help="leave out unreadable or missing files instead of refusing them",
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--num_proc", type=_positive, help="how many images to check at once (default: the cores)")
    shared.add_argument("--push_to_hub", metavar="ID", help="upload the prepared dataset with its card, as OWNER/NAME")

    voc = datasets.add_parser(
        "pascal_voc",
        parents=[common, shared],
        help="Pascal VOC 2012 with the training masks of SBD",
        description="Pascal VOC 2012: --source is the folder or the .tar that holds VOCdevkit/VOC2012. With --sbd, "
        "its own masks and lists are joined with SBD's; without, it has a ready SegmentationClassAug (PNG masks) and "
        "ImageSets/Segmentation/train_aug.txt.",
    )
    voc.add_argument("--sbd", type=Path, help="the folder benchmark_RELEASE, or benchmark.tgz (needs scipy)")

    context = datasets.add_parser(
        "pascal_context",
        parents=[common, shared],
        help="Pascal-Context, 33 classes",
        description="Pascal-Context, 33 classes: --source is the folder or the .tar that holds VOCdevkit/VOC2010, "
        "whose images and lists (ImageSets/Main) it uses; --labels has the label maps.",
    )
    context.add_argument(
        "--labels",
        type=Path,
        required=True,
        help="folder or archive: 33_context_labels (*.png), or trainval (*.mat and labels.txt; needs scipy), which is "
        "reduced to the 33 classes by name",
    )

    datasets.add_parser(
        "coco_stuff",
        parents=[common, shared],
        help="COCO-Stuff, 182 classes",
        description="COCO-Stuff: --source is the folder that holds train2017, val2017 and "
        "stuffthingmaps_trainval2017, each a folder or a .zip.",
    )

    folder = datasets.add_parser(
        "folder",
        parents=[common, shared],
        help="your own photographs and masks",
        description="Your own photographs: --source has images/, masks/ (PNG, named as their images; ids or colours) "
        "and classes.yaml, which names classes (id, name, optional color), seen and unseen ones. metadata.jsonl "
        "(file_name, mask_file_name) may pair files of other names, test.txt list "
        "the test images; or make train/ and test/, each with images/ and masks/.",
    )
    folder.add_argument(
        "--test_share",
        type=_share,
        default=0.2,
        help="share of the images to test on where --source does not say which (default: 0.2)",
    )

    folder.add_argument(
        "--license", default="unknown", help="the photographs' licence as the Hub calls it, for the dataset card"
    )

    check = datasets.add_parser(
        "check",
        parents=[shared],
        help="look at a prepared dataset: balance, sizes, warnings, a contact sheet",
        description="Decode every pair of a prepared dataset; print pixels by class, shares of seen, unseen and "
        "unlabelled pixels, sizes and warnings; write a contact sheet.",
    )
    check.add_argument("prepared", type=Path, metavar="DIR", help="the folder that this script made")
    check.add_argument("--benchmark", help="whose classes its masks hold (default: those of its classes.yaml)")
    check.add_argument("--sheet", type=Path, help="the contact sheet (default: DIR/contact_sheet.png)")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from cagnet_hf.cli import run

    return run(lambda: (check if args.dataset == "check" else prepare)(args))


def prepare(args: argparse.Namespace) -> None:
    from cagnet_hf.data.prepared import NUM_PROBLEMS_SHOWN, BadPairsError, write_prepared
    from cagnet_hf.data.report import format_report
    from cagnet_hf.hub.repositories import claim_repository

    if args.push_to_hub:  # before the work
        claim_repository(args.push_to_hub, repo_type="dataset")
    examples, benchmark, origin = _read(args)
    try:
        reports = write_prepared(
            examples,
            args.output,
            benchmark,
            origin=origin,
            overwrite=args.overwrite,
            skip_broken=args.skip_broken,
            num_proc=args.num_proc,
        )
    except BadPairsError as error:
        if len(error.problems) > NUM_PROBLEMS_SHOWN:
            print(*error.problems, sep="\n")
        raise
    print(format_report(benchmark, reports))
    print()
    for split, number in origin.images.items():
        if reports[split].num_images != number:
            print(f"Note: {split} has {reports[split].num_images:,} images, the official one {number:,}.")
    print(f"Wrote {args.output}")
    _push(args, args.output)


def check(args: argparse.Namespace) -> None:
    import numpy as np

    from cagnet_hf.apps.pictures import contact_sheet
    from cagnet_hf.data.benchmarks import load_benchmark
    from cagnet_hf.data.sources import open_prepared
    from cagnet_hf.data.survey import format_survey, survey, telling_images
    from cagnet_hf.hub.repositories import claim_repository

    if args.push_to_hub:
        claim_repository(args.push_to_hub, repo_type="dataset")
    if not args.prepared.is_dir():
        raise FileNotFoundError(f"{args.prepared}: no such folder")
    benchmark = load_benchmark(args.benchmark or args.prepared)
    surveys = survey(args.prepared, benchmark, args.num_proc)
    print(format_survey(benchmark, surveys))
    rows = {split: open_prepared(args.prepared, split=split) for split in surveys}
    pairs = []
    for split, index in telling_images(surveys, 12):
        row = rows[split][index]
        pairs.append(
            (row["image"], benchmark.label_space.to_model_order(np.asarray(row["mask"])), f"{split} {row['image_id']}")
        )
    sheet = args.sheet or args.prepared / "contact_sheet.png"
    fields = benchmark.config_fields()
    contact_sheet(pairs, benchmark.class_names, fields["seen_ids"], fields["unseen_ids"]).save(sheet, "PNG")
    print(f"Wrote {sheet}")
    _push(args, args.prepared)


def _push(args: argparse.Namespace, folder: Path) -> None:
    from cagnet_hf.hub.datasets import push_dataset

    if not args.push_to_hub:
        return
    try:
        print(f"Uploaded to {push_dataset(folder, args.push_to_hub)}")
    except ValueError as error:
        again = f"prepare_data.py check {folder} --push_to_hub {args.push_to_hub}"
        raise ValueError(f"{error}; {folder} is whole, to upload it: {again}") from None


def _read(args: argparse.Namespace) -> tuple:
    """(examples by split, benchmark, origin of the data)."""
    from cagnet_hf.data.benchmarks import Origin, load_benchmark
    from cagnet_hf.data.builders import BUILDERS, own_folder

    if args.dataset == "folder":
        examples, benchmark = own_folder.folder_examples(args.source, args.test_share)
        origin = benchmark.origin or Origin(f"Photographs and masks of the folder {args.source.name}.")
        if args.license != "unknown":
            origin = origin._replace(license=args.license, terms=args.license)
        return examples, benchmark, origin
    builder = BUILDERS[args.dataset]
    examples = builder.read(args.source, **{option: getattr(args, option) for option in builder.options})
    benchmark = load_benchmark(args.dataset)
    return examples, benchmark, benchmark.origin


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")
    return share


if __name__ == "__main__":
    sys.exit(main())
