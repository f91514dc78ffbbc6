"""Turn a dataset as it is distributed into a folder that `datasets.load_dataset` opens.

python scripts/prepare_data.py pascal_voc --source DIR_WITH_VOCDEVKIT --output data/pascal_voc
"""

import argparse
import sys
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Check a dataset of images and masks; write it as Parquet files, splits train and test."
    )
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--source", type=Path, required=True, help="where the data lies; see the dataset's help")
    common.add_argument("--output", type=Path, required=True, help="the folder to make")
    common.add_argument("--overwrite", action="store_true", help="replace a prepared dataset at --output")
    common.add_argument(
        "--skip_broken",
        action="store_true",
        help="leave out unreadable or missing files instead of refusing them",
    )
    common.add_argument("--num_proc", type=_positive, help="how many images to check at once (default: the cores)")

    datasets.add_parser(
        "pascal_voc",
        parents=[common],
        help="Pascal VOC 2012 with the augmented training masks of SBD",
        description="Pascal VOC 2012: --source is the folder that holds VOCdevkit/VOC2012, with JPEGImages, "
        "SegmentationClassAug (PNG masks) and ImageSets/Segmentation/{train_aug,val}.txt in it.",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    # Imported here, so that --help answers at once.
    from cagnet_hf.benchmarks import load_benchmark
    from cagnet_hf.data.pascal_voc import DESCRIPTION, pascal_voc_examples
    from cagnet_hf.data.prepared import format_report, write_prepared

    readers = {"pascal_voc": (pascal_voc_examples, DESCRIPTION)}
    read_examples, description = readers[args.dataset]
    benchmark = load_benchmark(args.dataset)
    try:
        reports = write_prepared(
            read_examples(args.source),
            args.output,
            benchmark,
            description=description,
            overwrite=args.overwrite,
            skip_broken=args.skip_broken,
            num_proc=args.num_proc,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_report(benchmark, reports))
    print(f"\nWrote {args.output}")
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
