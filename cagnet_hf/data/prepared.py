"""Writes a prepared dataset: a folder that `datasets.load_dataset` opens, whatever its source looked like.

    data/{split}-00000-of-0000N.parquet   columns `image`, `mask` (encoded files), `image_id`
    id2label.json                         stored id -> label name
    classes.yaml                          the class table: names, seen and unseen (see `benchmarks`)
    README.md                             dataset card with the `configs` block

Masks hold stored ids: mapping to model order and hiding unseen classes happen at training time, so one
prepared dataset serves every split into seen and unseen.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value
from tqdm.auto import tqdm

from ..files import DATASET_FOLDER, check_output, real_path, write_whole
from .benchmarks import CLASS_TABLE, Benchmark, Origin, format_class_table
from .examples import CheckedExample, Example, check_examples
from .label_space import UnknownIdsError, nothing_to_learn
from .report import SplitReport, dataset_card
from .samples import BrokenFileError

logger = logging.getLogger(__name__)

CARD, ID2LABEL = "README.md", "id2label.json"  # beside the data
FEATURES = Features({"image": Image(), "mask": Image(), "image_id": Value("string")})
MAX_FILE_BYTES = 500_000_000
ROWS_PER_GROUP = 100  # what a reader must load to reach one row
NUM_PROBLEMS_SHOWN = 5


class BadPairsError(ValueError):
    """Pairs of image and mask that were refused; the message tells the first faults, `problems` holds all."""

    def __init__(self, problems: list[ValueError]):
        self.problems, faults = problems, equal_faults(problems)
        shown = "; ".join(faults[:NUM_PROBLEMS_SHOWN])
        more = f"; and {len(faults) - NUM_PROBLEMS_SHOWN} more" if len(faults) > NUM_PROBLEMS_SHOWN else ""
        way_out = "repair them"
        if all(isinstance(problem, BrokenFileError) for problem in problems):
            way_out += " or pass skip_broken"
        super().__init__(f"{len(problems)} bad pairs of image and mask, {way_out}: {shown}{more}")


def equal_faults(problems: Sequence[ValueError]) -> list[str]:
    """What is wrong, a line for each file, but one line for all files with a fault that many have.

    Args:
        problems: Their texts are `FILE: FAULT`.
    """
    groups: dict[str, list[ValueError]] = {}
    for problem in problems:
        alone = ["{} files (first: {}): " + str(problem).partition(": ")[2]]
        for fault in problem.faults if isinstance(problem, UnknownIdsError) else alone:
            groups.setdefault(fault, []).append(problem)
    lines = []
    for fault, having in groups.items():
        many = len(having) > NUM_PROBLEMS_SHOWN
        first = str(having[0]).partition(": ")[0]
        lines += [fault.replace("{}", str(len(having)), 1).replace("{}", first, 1)] if many else map(str, having)
    return list(dict.fromkeys(lines))


def refuse_problems(reports: Mapping[str, SplitReport]) -> None:
    problems = [problem for report in reports.values() for problem in report.problems]
    if problems:
        raise BadPairsError(problems)


def write_prepared(
    examples_by_split: Mapping[str, Sequence[Example]],
    output_dir: str | Path,
    benchmark: Benchmark,
    *,
    origin: Origin | None = None,
    overwrite: bool = False,
    skip_broken: bool = False,
    num_proc: int | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> dict[str, SplitReport]:
    """Check every pair of image and mask and write the prepared dataset: whole, or not at all.

    Args:
        examples_by_split: The pairs by split name.
        output_dir: The folder to make.
        benchmark: The label set of the masks.
        origin: What the dataset card says of where the data comes from; what the class table says by default.
        overwrite: Replace a prepared dataset that is there already (never a folder of another kind).
        skip_broken: Leave out pairs with an unreadable file instead of refusing.
        num_proc: How many pairs to check at once; default: the number of cores.
        max_file_bytes: Start a new Parquet file beyond this size.

    Returns:
        A report for each split (see `format_report`).

    Raises:
        FileExistsError: The output is there and may not be replaced.
        ValueError: A file is broken, a mask's size differs from its image's, a label is outside the label
            set, an image id occurs twice, a split is empty, or no training image shows a seen class. All files are
            looked at first.
    """
    output_dir = real_path(Path(output_dir))
    check_output(output_dir, DATASET_FOLDER, overwrite=overwrite)
    for split, examples in examples_by_split.items():
        _check_ids(split, examples)
    reports = {split: SplitReport() for split in examples_by_split}

    def write(folder: Path) -> None:
        (folder / "data").mkdir()
        for split, examples in examples_by_split.items():
            results = check_examples(examples, benchmark.label_space, num_proc)
            results = tqdm(results, total=len(examples), desc=split, unit="image")
            valid = reports[split].enter(results, skip_broken=skip_broken)
            _write_split(folder / "data", split, valid, max_file_bytes)
        refuse_problems(reports)
        for split, report in reports.items():
            if not report.num_images:
                raise ValueError(f"split {split!r} is empty: every file is broken (first: {report.skipped[0]})")
        _check_training_labels(reports, benchmark)
        id2label = {str(i): name for i, name in enumerate(benchmark.label_names) if name}
        (folder / ID2LABEL).write_text(json.dumps(id2label, indent=2) + "\n", encoding="utf-8")
        (folder / CLASS_TABLE).write_text(format_class_table(benchmark), encoding="utf-8")
        described = origin or benchmark.origin or Origin(f"Images and masks of {benchmark.name}.")
        (folder / CARD).write_text(dataset_card(benchmark, reports, described), encoding="utf-8")

    write_whole(output_dir, write, DATASET_FOLDER)
    return reports


def _check_training_labels(reports: Mapping[str, SplitReport], benchmark: Benchmark) -> None:
    """Refuse training masks without one pixel of a seen class; warn of seen classes that only the test split shows."""
    if "train" not in reports:
        return
    trained, seen = reports["train"].num_pixels, list(benchmark.seen_ids)
    if not trained[seen].any():
        raise ValueError(nothing_to_learn(np.flatnonzero(trained).tolist()))
    tested = reports["test"].num_pixels if "test" in reports else np.zeros_like(trained)
    untaught = [benchmark.label_names[i] for i in seen if tested[i] and not trained[i]]
    if untaught:
        logger.warning("Seen classes that only the test split shows, nothing can be learnt of them: %s", untaught)


def _write_split(folder: Path, split: str, examples: Iterable[CheckedExample], max_file_bytes: int) -> None:
    """Parquet files of bounded size, whose names tell how many there are."""
    files: list[Path] = []
    writer = None
    for rows, file_is_full in _groups(examples, max_file_bytes):
        if writer is None:
            files.append(folder / f"{split}-{len(files):05d}")
            writer = pq.ParquetWriter(files[-1], FEATURES.arrow_schema)
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=FEATURES.arrow_schema))
        if file_is_full:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    for file in files:
        file.rename(folder / f"{file.name}-of-{len(files):05d}.parquet")


def _groups(examples: Iterable[CheckedExample], max_file_bytes: int) -> Iterator[tuple[list[dict], bool]]:
    """Rows that are stored together, and whether they fill a file."""
    rows, num_bytes = [], 0
    for example in examples:
        image, mask = ({"bytes": data, "path": None} for data in (example.image_bytes, example.mask_bytes))
        rows.append({"image": image, "mask": mask, "image_id": example.image_id})
        num_bytes += len(example.image_bytes) + len(example.mask_bytes)
        if num_bytes >= max_file_bytes:
            yield rows, True
            rows, num_bytes = [], 0
        elif len(rows) == ROWS_PER_GROUP:
            yield rows, False
            rows = []
    if rows:
        yield rows, False


def _check_ids(split: str, examples: Sequence[Example]) -> None:
    if not examples:
        raise ValueError(f"split {split!r} is empty: its source lists no images")
    image_id, count = Counter(example.image_id for example in examples).most_common(1)[0]
    if count > 1:
        raise ValueError(f"split {split!r}: image id {image_id!r} occurs {count} times; each must be unique")
