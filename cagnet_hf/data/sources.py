"""Opens a dataset, and finds its classes, by what the user calls it."""

import hashlib
import os
import re
from dataclasses import replace
from logging import getLogger
from pathlib import Path

import yaml
from datasets import Dataset, Features, Image, config, get_dataset_split_names, load_dataset_builder
from datasets.exceptions import DatasetGenerationError
from pydantic import TypeAdapter, ValidationError

from ..files import parse_yaml
from ..model.configuration_cagnet import plain_name
from .benchmarks import CLASS_TABLE, Benchmark, load_benchmark
from .label_space import LabelSpace
from .rows import Rows, StreamedRows, undecoded
from .scenes import scenes_dataset

logger = getLogger(__name__)


def open_dataset(
    source: str,
    split: str,
    *,
    image_column: str = "image",
    mask_column: str = "mask",
    labels: LabelSpace | None = None,
    streaming: bool = False,
    shuffle_buffer: int = 1000,
) -> Rows | StreamedRows:
    """A split of a dataset, as samples.

    Args:
        source: `"scenes:SEED"` for the synthetic benchmark, a folder that `datasets.load_dataset` opens (such as a
            prepared one), or a Hub id.
        split: The split to open.
        image_column, mask_column: What the dataset calls them.
        labels: What its masks show; by default ids, or colours of the PASCAL palette.
        streaming: Read rows as they are needed, instead of downloading and indexing them first.
        shuffle_buffer: How many streamed rows the training order is drawn from.

    Raises:
        FileNotFoundError: There is no such dataset, on disk or on the Hub.
        ValueError: The split or a column is missing, a column holds no images, or the split is empty.
    """
    name, colon, seed = source.partition(":")
    if name == "scenes":
        if colon and not seed.isdecimal():
            raise ValueError(f"dataset {source!r}: write scenes:SEED with a number, such as scenes:0")
        if streaming:
            raise ValueError(f"dataset {source!r} is drawn, not streamed: leave out streaming")
        return Rows(scenes_dataset(int(seed or 0), split), labels)
    columns = {"image_column": image_column, "mask_column": mask_column}
    if streaming:
        return _open_streamed(source, split, **columns, labels=labels or LabelSpace(), shuffle_buffer=shuffle_buffer)
    return Rows(open_prepared(source, split=split, **columns), labels)


def open_with_classes(
    source: str, split: str, *, benchmark: str | None = None, label_map: str | None = None, **options
) -> tuple[Rows | StreamedRows, Benchmark | None]:
    """A split as training opens it, and whose classes its masks hold; None where nobody knows.

    Args:
        benchmark: Name or class table of these classes; by default what the dataset's own class table says.
        label_map: YAML of a label map (see `LabelSpace`).
        options: Those of `open_dataset`.
    """
    classes = load_benchmark(benchmark) if benchmark else classes_of_dataset(source)
    if classes is not None and not label_map:
        check_classes_of_dataset(source, classes)
    if label_map and classes is None:
        raise ValueError(f"label_map {label_map}: say whose classes these are (benchmark=NAME or FILE.yaml)")
    labels = replace(classes.label_space, label_map=_parsed(label_map)) if classes else None
    return open_dataset(source, split, labels=labels, **options), classes


def _parsed(label_map: str | None) -> dict[int, int | str | None]:
    try:
        return TypeAdapter(dict[int, int | str | None]).validate_python(parse_yaml(label_map or "{}"))
    except (yaml.YAMLError, ValidationError):
        written = f"label_map {label_map!r}"
        raise ValueError(f"{written}: write ids and classes such as {{1: dog, 2: sofa, 7: null}}") from None


def classes_of_dataset(source: str) -> Benchmark | None:
    """Whose classes the masks of a dataset hold, by the class table in its folder; None where nobody knows."""
    if source.partition(":")[0] == "scenes":
        return load_benchmark("scenes")
    return load_benchmark(source) if (Path(source) / CLASS_TABLE).is_file() else None


def check_classes_of_dataset(source: str, benchmark: Benchmark) -> None:
    """Refuse a prepared folder whose own class table gives ids to other classes than a benchmark; where the table has
    other unseen classes, say that those of the benchmark count.

    Raises:
        ValueError: An id is another class in the folder's class table.
    """
    own = classes_of_dataset(source)
    if own is None:
        return
    known = dict(enumerate(benchmark.label_names))
    differing = [
        f"{i} is {name!r} there and {known.get(i) or 'no class'!r} here"
        for i, name in enumerate(own.label_names)
        if name and plain_name(name) != plain_name(known.get(i, ""))
    ]
    if differing:
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ValueError(
            f"{source} has other classes than benchmark {benchmark.name}: id {'; '.join(differing[:3])}{more}: say "
            f"benchmark={source}, or give a label_map"
        )
    if set(own.unseen_ids) != set(benchmark.unseen_ids):
        logger.warning(
            "The unseen classes are those of benchmark %s, not those of %s/%s, which benchmark=%s takes",
            *(benchmark.table or benchmark.name, source, CLASS_TABLE, source),
        )


def open_prepared(
    path_or_hub_id: str | Path, *, split: str, image_column: str = "image", mask_column: str = "mask"
) -> Dataset:
    """A split as a `datasets.Dataset` with the columns `image`, `mask` (PIL images when read) and `image_id`.

    Args and errors: see `open_dataset`.
    """
    name = os.fspath(path_or_hub_id)
    _check_split(name, split)
    builder = load_dataset_builder(name, cache_dir=_cache_of(Path(name)))
    try:
        builder.download_and_prepare()
    except DatasetGenerationError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"{name}: its files cannot be read ({reason})") from error
    if not builder.info.splits[split].num_examples:
        raise ValueError(f"{name}: split {split!r} is empty")
    dataset = builder.as_dataset(split=split)
    _check_columns(name, dataset.features, image_column, mask_column)
    if "image_id" not in dataset.column_names:
        dataset = dataset.add_column("image_id", [f"{split}-{i:06d}" for i in range(len(dataset))])
    return _our_columns(dataset, image_column, mask_column)


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


def _open_streamed(
    name: str, split: str, *, image_column: str, mask_column: str, labels: LabelSpace, shuffle_buffer: int
) -> StreamedRows:
    """A split that is not downloaded first; its rows are called by their file or number where they have no id."""
    _check_split(name, split)
    builder = load_dataset_builder(name)
    rows = builder.as_streaming_dataset(split=split)
    rows = rows if rows.features is not None else rows._resolve_features()
    _check_columns(name, rows.features, image_column, mask_column)
    rows = undecoded(rows, image_column, mask_column)  # first: what comes later would decode
    if "image_id" not in rows.features:
        rows = rows.map(lambda row, number: {"image_id": _name_of_row(row[image_column], number)}, with_indices=True)
    rows = _our_columns(rows, image_column, mask_column)
    return StreamedRows(rows, labels, shuffle_buffer, (builder.config.data_files or {}).get(split, ()))


def _name_of_row(image: dict, number: int) -> str:
    return os.path.basename(image["path"] or "") or f"row {number}"


def _check_split(name: str, split: str) -> None:
    """Refuse what is no dataset on disk or on the Hub, or lacks the split."""
    # `data/voc` may be a Hub id, unless a folder `data` is here: then it is a typo, not worth asking the Hub.
    may_be_hub_id = name.count("/") == 1 and not Path(name).parent.is_dir()
    if not Path(name).is_dir() and not may_be_hub_id:
        raise FileNotFoundError(f"{name}: no such folder; `cagnet-hf prepare_data` makes one")
    _check_card(Path(name) / "README.md")
    try:
        splits = get_dataset_split_names(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"{name}: not a dataset on disk or on the Hub ({reason})") from error
    if split not in splits:
        raise ValueError(f"{name}: no split {split!r}; it has {', '.join(splits)}")


def _check_card(card: Path) -> None:
    """Refuse a card that `datasets` could not read, or would read for ever."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    try:
        parse_yaml(head[1] if head else "")
    except yaml.YAMLError as error:
        raise ValueError(f"{card}: not YAML at its head: {' '.join(str(error).split())}") from None


def _check_columns(name: str, features: Features, *columns: str) -> None:
    """Refuse a dataset that lacks a column, or whose column holds no images."""
    for column in columns:
        if column not in features:
            raise ValueError(f"{name}: no column {column!r}; it has {', '.join(features)}")
        if not isinstance(features[column], Image):
            raise ValueError(f"{name}: column {column!r} holds {features[column]}, not images")


def _our_columns(rows, image_column: str, mask_column: str):
    """The columns `image`, `mask` and `image_id`, whatever the dataset calls the first two."""
    rows = rows.select_columns([image_column, mask_column, "image_id"])
    names = {image_column: "image", mask_column: "mask"}
    return rows.rename_columns({theirs: ours for theirs, ours in names.items() if theirs != ours})
