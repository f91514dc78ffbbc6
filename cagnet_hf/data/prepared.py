"""The prepared dataset: a folder that `datasets.load_dataset` opens, whatever its source looked like.

    data/{split}-00000-of-0000N.parquet   columns `image`, `mask` (encoded files), `image_id`
    id2label.json                         stored id -> label name
    classes.yaml                          the class table: names, seen and unseen (see `benchmarks`)
    README.md                             dataset card with the `configs` block

Masks hold stored ids: mapping to model order and hiding unseen classes happen at training time, so one
prepared dataset serves every split into seen and unseen.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, Value, get_dataset_split_names, load_dataset_builder
from datasets.exceptions import DatasetGenerationError
from tqdm import tqdm

from ..benchmarks import CLASS_TABLE, IGNORE_INDEX, Benchmark, format_class_table
from .examples import BrokenFileError, CheckedExample, Example, check_examples
from .rows import check_columns

FEATURES = Features({"image": Image(), "mask": Image(), "image_id": Value("string")})
ROWS_PER_GROUP = 100  # what a reader must load to reach one row
MAX_SHARD_BYTES = 500_000_000
NUM_PROBLEMS_SHOWN = 5


class BadPairsError(ValueError):
    """Pairs of image and mask that were refused; the message names the first, `problems` holds all."""

    def __init__(self, problems: list[ValueError]):
        self.problems = problems
        shown = "; ".join(str(problem) for problem in problems[:NUM_PROBLEMS_SHOWN])
        more = f"; and {len(problems) - NUM_PROBLEMS_SHOWN} more" if len(problems) > NUM_PROBLEMS_SHOWN else ""
        way_out = "repair them"
        if all(isinstance(problem, BrokenFileError) for problem in problems):
            way_out += " or pass skip_broken"
        super().__init__(f"{len(problems)} bad pairs of image and mask, {way_out}: {shown}{more}")


@dataclass
class SplitReport:
    """What went into a split. The counts are indexed by stored id, `(256,)`."""

    num_images: int = 0
    num_pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    num_images_with: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    skipped: list[str] = field(default_factory=list)

    def add(self, example: CheckedExample) -> None:
        self.num_images += 1
        self.num_pixels += example.num_pixels
        self.num_images_with += example.num_pixels > 0


def write_prepared(
    examples_by_split: Mapping[str, Sequence[Example]],
    output_dir: str | Path,
    benchmark: Benchmark,
    *,
    description: str = "",
    overwrite: bool = False,
    skip_broken: bool = False,
    num_proc: int | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, SplitReport]:
    """Check every pair of image and mask and write the prepared dataset: whole, or not at all.

    Args:
        examples_by_split: The pairs by split name.
        output_dir: The folder to make.
        benchmark: The label set of the masks.
        description: A sentence for the dataset card on where the data comes from.
        overwrite: Replace a prepared dataset that is there already (never a folder of another kind).
        skip_broken: Leave out pairs with an unreadable file instead of refusing.
        num_proc: How many pairs to check at once; default: the number of cores.
        max_shard_bytes: Start a new Parquet file beyond this size.

    Returns:
        A report for each split (see `format_report`).

    Raises:
        FileExistsError: The output is there and may not be replaced.
        ValueError: A file is broken, a mask's size differs from its image's, a label is outside the label
            set, an image id occurs twice, or a split is empty. All files are looked at first.
    """
    output_dir = Path(output_dir).resolve()
    _check_output(output_dir, overwrite)
    for split, examples in examples_by_split.items():
        _check_ids(split, examples)
    partial = output_dir.with_name(f".{output_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
    (partial / "data").mkdir(parents=True)
    reports, problems = {}, []
    try:
        for split, examples in examples_by_split.items():
            reports[split] = report = SplitReport()
            with _ShardWriter(partial / "data", split, max_shard_bytes) as shards:
                results = check_examples(examples, benchmark.label_map, num_proc)
                for result in tqdm(results, total=len(examples), desc=split, unit="image"):
                    if isinstance(result, CheckedExample):
                        report.add(result)
                        shards.add(result)
                    elif skip_broken and isinstance(result, BrokenFileError):
                        report.skipped.append(str(result))
                    else:
                        problems.append(result)
        if problems:
            raise BadPairsError(problems)
        for split, report in reports.items():
            if not report.num_images:
                raise ValueError(f"split {split!r} is empty: every file is broken (first: {report.skipped[0]})")
        id2label = {str(i): name for i, name in enumerate(benchmark.label_names) if name}
        (partial / "id2label.json").write_text(json.dumps(id2label, indent=2) + "\n", encoding="utf-8")
        (partial / CLASS_TABLE).write_text(format_class_table(benchmark), encoding="utf-8")
        (partial / "README.md").write_text(_card(benchmark, reports, description), encoding="utf-8")
        _publish(partial, output_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return reports


def format_report(benchmark: Benchmark, reports: Mapping[str, SplitReport]) -> str:
    """The closing report in Markdown: images and pixels by class and split, and what was skipped and why."""
    roles = dict.fromkeys(benchmark.seen_ids, "seen") | dict.fromkeys(benchmark.unseen_ids, "unseen")
    header = ["id", "class", "role"] + [f"{split} {what}" for split in reports for what in ("images", "pixels")]
    rows = [header, ["---"] * len(header)]
    names = {i: name for i, name in enumerate(benchmark.label_names) if name} | {IGNORE_INDEX: "(unlabelled)"}
    for i, name in names.items():
        counts = [f"{n:,}" for r in reports.values() for n in (r.num_images_with[i], r.num_pixels[i])]
        rows.append([str(i), name, roles.get(i, "ignored"), *counts])
    totals = [f"{n:,}" for r in reports.values() for n in (r.num_images, r.num_pixels.sum())]
    rows.append(["", "all", "", *totals])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    for split, report in reports.items():
        if report.skipped:
            lines += ["", f"Skipped in {split}: {len(report.skipped)}"]
            lines += [f"- {reason}" for reason in report.skipped]
    return "\n".join(lines)


def open_prepared(
    path_or_hub_id: str | Path, *, split: str, image_column: str = "image", mask_column: str = "mask"
) -> Dataset:
    """A split as a `datasets.Dataset` with the columns `image`, `mask` (PIL images when read) and `image_id`.

    Args:
        path_or_hub_id: A prepared folder, or the id of a dataset on the Hub.
        split: The split to open.
        image_column: What the dataset calls its images; they become `image`.
        mask_column: What the dataset calls its masks; they become `mask`.

    Raises:
        FileNotFoundError: There is no such dataset, on disk or on the Hub.
        ValueError: The split or a column is missing, a column holds no images, or the split is empty.
    """
    name = os.fspath(path_or_hub_id)
    check_split(name, split)
    builder = load_dataset_builder(name)
    try:
        builder.download_and_prepare()
    except DatasetGenerationError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"{name}: its files cannot be read ({reason})") from error
    if not builder.info.splits[split].num_examples:
        raise ValueError(f"{name}: split {split!r} is empty")
    dataset = builder.as_dataset(split=split)
    check_columns(name, dataset.features, image_column, mask_column)
    if "image_id" not in dataset.column_names:
        dataset = dataset.add_column("image_id", [f"{split}-{i:06d}" for i in range(len(dataset))])
    dataset = dataset.select_columns([image_column, mask_column, "image_id"])
    return dataset.rename_columns({image_column: "image", mask_column: "mask"})


def check_split(name: str, split: str) -> None:
    """Refuse what is no dataset on disk or on the Hub, or lacks the split."""
    # `data/voc` may be a Hub id, unless a folder `data` is here: then it is a typo, not worth asking the Hub.
    may_be_hub_id = name.count("/") == 1 and not Path(name).parent.is_dir()
    if not Path(name).is_dir() and not may_be_hub_id:
        raise FileNotFoundError(f"{name}: no such folder; scripts/prepare_data.py makes one")
    try:
        splits = get_dataset_split_names(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"{name}: not a dataset on disk or on the Hub ({reason})") from error
    if split not in splits:
        raise ValueError(f"{name}: no split {split!r}; it has {', '.join(splits)}")


class _ShardWriter:
    """Writes Parquet files of bounded size; their names tell how many there are, so they are named last."""

    def __init__(self, folder: Path, split: str, max_bytes: int):
        self.folder, self.split, self.max_bytes = folder, split, max_bytes
        self.paths: list[Path] = []
        self.writer: pq.ParquetWriter | None = None
        self.rows: list[dict] = []
        self.num_bytes = 0

    def __enter__(self) -> "_ShardWriter":
        return self

    def add(self, example: CheckedExample) -> None:
        image = {"bytes": example.image_bytes, "path": None}
        mask = {"bytes": example.mask_bytes, "path": None}
        self.rows.append({"image": image, "mask": mask, "image_id": example.image_id})
        self.num_bytes += len(example.image_bytes) + len(example.mask_bytes)
        if self.num_bytes >= self.max_bytes:
            self._close_shard()
        elif len(self.rows) == ROWS_PER_GROUP:
            self._write_rows()

    def _write_rows(self) -> None:
        if self.writer is None:
            self.paths.append(self.folder / f"{self.split}-{len(self.paths):05d}")
            self.writer = pq.ParquetWriter(self.paths[-1], FEATURES.arrow_schema)
        self.writer.write_batch(pa.RecordBatch.from_pylist(self.rows, schema=FEATURES.arrow_schema))
        self.rows = []

    def _close_shard(self) -> None:
        if self.rows:
            self._write_rows()
        if self.writer is not None:
            self.writer.close()
        self.writer, self.num_bytes = None, 0

    def __exit__(self, *exception) -> None:
        self._close_shard()
        for path in self.paths:
            path.rename(path.with_name(f"{path.name}-of-{len(self.paths):05d}.parquet"))


def _check_output(output_dir: Path, overwrite: bool) -> None:
    if output_dir.is_dir() and not any(output_dir.iterdir()):
        return
    if output_dir.is_dir() and overwrite and not (output_dir / "id2label.json").is_file():
        raise FileExistsError(
            f"{output_dir} is no prepared dataset (no id2label.json in it) and stays; choose another"
        )
    if output_dir.exists() and not overwrite:
        raise FileExistsError(f"{output_dir} exists; choose another output or pass overwrite")


def _check_ids(split: str, examples: Sequence[Example]) -> None:
    if not examples:
        raise ValueError(f"split {split!r} is empty: its source lists no images")
    image_id, count = Counter(example.image_id for example in examples).most_common(1)[0]
    if count > 1:
        raise ValueError(f"split {split!r}: image id {image_id!r} occurs {count} times; each must be unique")


def _card(benchmark: Benchmark, reports: Mapping[str, SplitReport], description: str) -> str:
    data_files = "\n".join(f"  - split: {split}\n    path: data/{split}-*" for split in reports)
    return f"""---
pretty_name: {json.dumps(benchmark.name)}
task_categories:
- image-segmentation
configs:
- config_name: default
  data_files:
{data_files}
---

# {benchmark.name}

{description}

Columns: `image`, `mask` (8-bit PNG of the ids below; 255 has no label), `image_id`.
Names by id: `id2label.json`; seen and unseen classes: `classes.yaml`.
Seen classes have labels in training; unseen classes have none and are met at test time only.

{format_report(benchmark, reports)}
"""


def _publish(partial: Path, output_dir: Path) -> None:
    """Put the finished folder in its place; an older one leaves only once the new one is whole."""
    if output_dir.exists():
        old = output_dir.with_name(f".{output_dir.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        output_dir.rename(old)
        partial.rename(output_dir)
        shutil.rmtree(old)
    else:
        partial.rename(output_dir)
