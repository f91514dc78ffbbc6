"""The prepared dataset: a folder that `datasets.load_dataset` opens, whatever its source looked like.

    data/{split}-00000-of-0000N.parquet   columns `image`, `mask` (encoded files), `image_id`
    id2label.json                         stored id -> label name
    classes.yaml                          the class table: names, seen and unseen (see `benchmarks`)
    README.md                             dataset card with the `configs` block

Masks hold stored ids: mapping to model order and hiding unseen classes happen at training time, so one
prepared dataset serves every split into seen and unseen.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Dataset, config, get_dataset_split_names, load_dataset_builder
from datasets.exceptions import DatasetGenerationError
from tqdm.auto import tqdm

from .benchmarks import CLASS_TABLE, Benchmark, format_class_table
from .card import CARD, ID2LABEL, Origin, dataset_card
from .examples import BrokenFileError, Example, check_examples
from .report import SplitReport
from .rows import check_columns
from .shards import ShardWriter, Workplace, plan_of

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


def write_prepared(
    examples_by_split: Mapping[str, Sequence[Example]],
    output_dir: str | Path,
    benchmark: Benchmark,
    *,
    origin: Origin | None = None,
    overwrite: bool = False,
    skip_broken: bool = False,
    num_proc: int | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, SplitReport]:
    """Check every pair of image and mask and write the prepared dataset: whole, or not at all.

    A run that was killed leaves its finished files beside the output; the same call goes on after them.

    Args:
        examples_by_split: The pairs by split name.
        output_dir: The folder to make.
        benchmark: The label set of the masks.
        origin: What the dataset card says of where the data comes from.
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
    place = Workplace(output_dir)
    place.open(plan_of(examples_by_split, benchmark, skip_broken=skip_broken, max_shard_bytes=max_shard_bytes))
    writers, problems = {}, []
    try:
        for split, examples in examples_by_split.items():
            writers[split] = writer = ShardWriter(place, split, max_shard_bytes)
            done = writer.next_example
            results = check_examples(examples[done:], benchmark.label_map, num_proc)
            for result in tqdm(results, initial=done, total=len(examples), desc=split, unit="image"):
                broken = isinstance(result, ValueError)
                if broken and not (skip_broken and isinstance(result, BrokenFileError)):
                    problems.append(result)
                elif not problems:  # what is to be refused is only looked at any more
                    writer.skip(str(result)) if broken else writer.add(result)
            if not problems:
                writer.finish()
        if problems:
            raise BadPairsError(problems)
        reports = {split: writer.report for split, writer in writers.items()}
        for split, report in reports.items():
            if not report.num_images:
                raise ValueError(f"split {split!r} is empty: every file is broken (first: {report.skipped[0]})")
    except ValueError:  # what a kill or a full disk interrupts goes on later; what is refused is not kept
        place.remove()
        raise
    for writer in writers.values():
        writer.name_files()
    id2label = {str(i): name for i, name in enumerate(benchmark.label_names) if name}
    (place.dataset / ID2LABEL).write_text(json.dumps(id2label, indent=2) + "\n", encoding="utf-8")
    (place.dataset / CLASS_TABLE).write_text(format_class_table(benchmark), encoding="utf-8")
    card = dataset_card(benchmark, reports, origin or Origin(f"Images and masks of {benchmark.name}."))
    (place.dataset / CARD).write_text(card, encoding="utf-8")
    _publish(place.dataset, output_dir)
    place.remove()
    return reports


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
    builder = load_dataset_builder(name, cache_dir=_cache_of(Path(name)))
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


def _cache_of(folder: Path) -> str | None:
    """Where `datasets` keeps its copy of a folder's data: by itself it takes folders of one name for one dataset, and
    a folder whose files have changed for what it was before."""
    if not folder.is_dir():
        return None
    digest = hashlib.sha256(str(folder.resolve()).encode())
    data_files = load_dataset_builder(str(folder)).config.data_files
    for path in sorted(Path(file) for files in data_files.values() for file in files):
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    return os.path.join(config.HF_DATASETS_CACHE, f"{folder.name}-{digest.hexdigest()[:16]}")


def check_split(name: str, split: str) -> None:
    """Refuse what is no dataset on disk or on the Hub, or lacks the split."""
    # `data/voc` may be a Hub id, unless a folder `data` is here: then it is a typo, not worth asking the Hub.
    may_be_hub_id = name.count("/") == 1 and not Path(name).parent.is_dir()
    if not Path(name).is_dir() and not may_be_hub_id:
        raise FileNotFoundError(f"{name}: no such folder; `cagnet-hf prepare_data` makes one")
    try:
        splits = get_dataset_split_names(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"{name}: not a dataset on disk or on the Hub ({reason})") from error
    if split not in splits:
        raise ValueError(f"{name}: no split {split!r}; it has {', '.join(splits)}")


def _check_output(output_dir: Path, overwrite: bool) -> None:
    if output_dir.is_dir() and not any(output_dir.iterdir()):
        return
    if output_dir.is_dir() and overwrite and not (output_dir / ID2LABEL).is_file():
        raise FileExistsError(f"{output_dir} is no prepared dataset (no {ID2LABEL} in it) and stays; choose another")
    if output_dir.exists() and not overwrite:
        raise FileExistsError(f"{output_dir} exists; choose another --output, or replace it with --overwrite")


def _check_ids(split: str, examples: Sequence[Example]) -> None:
    if not examples:
        raise ValueError(f"split {split!r} is empty: its source lists no images")
    image_id, count = Counter(example.image_id for example in examples).most_common(1)[0]
    if count > 1:
        raise ValueError(f"split {split!r}: image id {image_id!r} occurs {count} times; each must be unique")


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
