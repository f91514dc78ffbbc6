"""Write a dataset of images and masks as Parquet files.

Every pair is checked. `datasets.load_dataset` opens the files, and so do training and evaluation. The first word names
the dataset: `cagnet-hf prepare_data pascal_voc --help` tells what it is read from. Archives need not be unpacked.
`cagnet-hf prepare_data check DIR` looks at a prepared dataset.
"""

from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

logger = getLogger(__name__)


@dataclass(kw_only=True)
class Preparation:
    """What to prepare, and where to.

    Attributes:
        source: The folder or archive of the data; see above.
        output: The folder to make.
        overwrite: Replace a prepared dataset at --output.
        skip_broken: Leave out unreadable or missing files instead of refusing them.
        num_proc: How many images to check at once (default: the cores).
        push_to_hub (ID): Upload the prepared dataset with its card, as OWNER/NAME.
    """

    source: Path
    output: Path
    overwrite: bool = False
    skip_broken: bool = False
    num_proc: int | None = None
    push_to_hub: str | None = None

    def check(self, *inputs: Path | None) -> None:
        """Refuse, before the work, what would fail after it.

        Args:
            inputs: What is read beside the source.
        """
        from ..files import DATASET_FOLDER, check_output

        check_output(self.output, DATASET_FOLDER, inputs=(self.source, *inputs), overwrite=self.overwrite)
        _check(self.num_proc, self.push_to_hub)

    def write_official(self, name: str, **options) -> None:
        """Write a dataset as its authors distribute it.

        Args:
            name: The dataset, which is a benchmark, too.
            options: What its builder takes beside the source.
        """
        from ..data.benchmarks import load_benchmark
        from ..data.builders import BUILDERS

        self.check(*options.values())
        benchmark = load_benchmark(name)
        self.write(BUILDERS[name](self.source, **options), benchmark, benchmark.origin)

    def write(self, examples, benchmark, origin) -> None:
        """Write the dataset, report what went into it, and upload it where that was asked for.

        Args:
            examples: Pairs of image and mask by split.
            benchmark: The classes of the masks.
            origin: Where the data come from, for the dataset card.
        """
        from ..data.prepared import NUM_PROBLEMS_SHOWN, BadPairsError, write_prepared
        from ..data.report import format_report
        from ..data.samples import BrokenFileError

        options = {"overwrite": self.overwrite, "skip_broken": self.skip_broken, "num_proc": self.num_proc}
        try:
            reports = write_prepared(examples, self.output, benchmark, origin=origin, **options)
        except BadPairsError as error:
            broken = [problem for problem in error.problems if isinstance(problem, BrokenFileError)]
            if len(broken) > NUM_PROBLEMS_SHOWN:  # each of them is to be repaired
                logger.info("\n".join(map(str, broken)))
            raise
        logger.info("%s\n", format_report(benchmark, reports))
        for split, number in origin.images.items():
            found = reports[split].num_images
            if found != number:
                logger.info(f"Note: {split} has {found:,} images, the official one {number:,}.")
        logger.info("Wrote %s", self.output)
        _push(self.output, self.push_to_hub)


def pascal_voc(to: Preparation, *, sbd: Path | None = None) -> None:
    """Pascal VOC 2012 with the training masks of SBD.

    --source is the folder or the .tar that holds VOCdevkit/VOC2012. With --sbd, its own masks and lists are joined
    with SBD's; without, it has a ready SegmentationClassAug (PNG masks) and ImageSets/Segmentation/train_aug.txt.

    Args:
        sbd: The folder benchmark_RELEASE, or benchmark.tgz (needs scipy).
    """
    to.write_official("pascal_voc", sbd=sbd)


def pascal_context(to: Preparation, *, labels: Path) -> None:
    """Pascal-Context, 33 classes.

    --source is the folder or the .tar that holds VOCdevkit/VOC2010, whose images and lists (ImageSets/Main) it uses;
    --labels has the label maps.

    Args:
        labels: Folder or archive: 33_context_labels (*.png), or trainval (*.mat and labels.txt; needs scipy), which is
            reduced to the 33 classes by name.
    """
    to.write_official("pascal_context", labels=labels)


def coco_stuff(to: Preparation) -> None:
    """COCO-Stuff, 182 classes.

    --source is the folder that holds train2017, val2017 and stuffthingmaps_trainval2017, each a folder or a .zip.
    """
    to.write_official("coco_stuff")


def folder(to: Preparation, *, test_share: float = 0.2, license: str = "unknown") -> None:
    """Your own photographs and masks.

    --source has images/, masks/ (PNG, named as their images; ids or colours) and classes.yaml, which names classes
    (id, name, optional color), seen and unseen ones. metadata.jsonl (file_name, mask_file_name) may pair files of
    other names, test.txt list the test images; or make train/ and test/, each with images/ and masks/.

    Args:
        test_share: Share of the images to test on where --source does not say which.
        license: The photographs' licence as the Hub calls it, for the dataset card.
    """
    from ..data.benchmarks import Origin
    from ..data.builders.own_folder import folder_examples

    to.check()
    examples, benchmark = folder_examples(to.source, test_share)
    origin = benchmark.origin or Origin(f"Photographs and masks of the folder {to.source.name}.")
    if license != "unknown":
        origin = origin._replace(license=license, terms=license)
    to.write(examples, benchmark, origin)


def check(
    prepared: Path,
    *,
    benchmark: str | None = None,
    sheet: Path | None = None,
    num_proc: int | None = None,
    push_to_hub: str | None = None,
) -> None:
    """Look at a prepared dataset: balance, sizes, warnings, a contact sheet.

    Decode every pair of a prepared dataset; print pixels by class, shares of seen, unseen and unlabelled pixels, sizes
    and warnings; write a contact sheet.

    Args:
        prepared (DIR): The folder that this command made.
        benchmark: Whose classes its masks hold (default: those of its classes.yaml).
        sheet: The contact sheet (default: DIR/contact_sheet.png).
        num_proc: How many images to check at once (default: the cores).
        push_to_hub (ID): Upload the prepared dataset with its card, as OWNER/NAME.
    """
    import numpy as np

    from ..apps.pictures import contact_sheet, save_picture
    from ..data.benchmarks import load_benchmark
    from ..data.sources import open_prepared
    from ..data.survey import format_survey, survey, telling_images
    from ..files import check_output, made_by

    mark, sheet = made_by("prepare_data"), sheet or prepared / "contact_sheet.png"
    check_output(sheet, mark)
    _check(num_proc, push_to_hub)
    if not prepared.is_dir():
        raise FileNotFoundError(f"{prepared}: no such folder")
    classes = load_benchmark(benchmark or prepared)
    surveys = survey(prepared, classes, num_proc)
    logger.info(format_survey(classes, surveys))
    rows = {split: open_prepared(prepared, split=split) for split in surveys}
    pairs = []
    for split, index in telling_images(surveys, 12):
        row = rows[split][index]
        label_map = classes.label_space.to_model_order(np.asarray(row["mask"]))
        pairs.append((row["image"], label_map, f"{split} {row['image_id']}"))
    fields = classes.config_fields()
    drawn = contact_sheet(pairs, classes.class_names, fields["seen_ids"], fields["unseen_ids"])
    save_picture(drawn, sheet, mark)
    logger.info("Wrote %s", sheet)
    _push(prepared, push_to_hub)


WORDS = (pascal_voc, pascal_context, coco_stuff, folder, check)


def _check(num_proc: int | None, repo_id: str | None) -> None:
    """Before the work."""
    from ..hub.repositories import claim_repository

    if num_proc is not None and num_proc < 1:
        raise ValueError(f"--num_proc {num_proc}: choose a number of at least 1")
    if repo_id:
        claim_repository(repo_id, repo_type="dataset")


def _push(folder: Path, repo_id: str | None) -> None:
    from ..hub.datasets import push_dataset

    if not repo_id:
        return
    try:
        logger.info("Uploaded to %s", push_dataset(folder, repo_id))
    except ValueError as error:
        again = f"cagnet-hf prepare_data check {folder} --push_to_hub {repo_id}"
        raise ValueError(f"{error}; {folder} is whole, to upload it: {again}") from None
