"""Opens a dataset, and finds its classes, by what the user calls it."""

from pathlib import Path

import yaml
from datasets import Dataset

from .benchmarks import CLASS_TABLE, Benchmark, load_benchmark
from .masks import MaskReader
from .prepared import check_split, open_prepared
from .rows import StreamedRows, decoded, open_streamed
from .scenes import scenes_dataset


def open_dataset(
    source: str,
    split: str,
    *,
    image_column: str = "image",
    mask_column: str = "mask",
    masks: MaskReader | None = None,
    streaming: bool = False,
    shuffle_buffer: int = 1000,
) -> Dataset | StreamedRows:
    """A split with the columns `image`, `mask` (of stored ids, mode L), `image_id`.

    Args:
        source: `"scenes:SEED"` for the synthetic benchmark, a folder that `datasets.load_dataset` opens (such as a
            prepared one), or a Hub id.
        image_column, mask_column: What the dataset calls them.
        masks: What its masks show; by default ids, or colours of the PASCAL palette.
        streaming: Read rows as they are needed, instead of downloading and indexing them first.
        shuffle_buffer: How many streamed rows the training order is drawn from.
    """
    name, colon, seed = source.partition(":")
    if name == "scenes":
        if colon and not seed.isdecimal():
            raise ValueError(f"dataset {source!r}: write scenes:SEED with a number, such as scenes:0")
        if streaming:
            raise ValueError(f"dataset {source!r} is drawn, not streamed: leave out streaming")
        return scenes_dataset(int(seed or 0), split)
    masks, columns = masks or MaskReader(), {"image_column": image_column, "mask_column": mask_column}
    if streaming:
        check_split(source, split)
        return open_streamed(source, split=split, **columns, masks=masks, shuffle_buffer=shuffle_buffer)
    return decoded(open_prepared(source, split=split, **columns), masks)


def open_with_classes(
    source: str, split: str, *, benchmark: str | None = None, label_map: str | None = None, **options
) -> tuple[Dataset | StreamedRows, Benchmark | None]:
    """A split as training opens it, and whose classes its masks hold; None where nobody knows.

    Args:
        benchmark: Name or class table of these classes; by default what the dataset's own class table says.
        label_map: YAML of a label map (see `MaskReader`).
        options: Those of `open_dataset`.
    """
    classes = load_benchmark(benchmark) if benchmark else classes_of_dataset(source)
    if label_map and classes is None:
        raise ValueError(f"label_map {label_map}: say whose classes these are (benchmark=NAME or FILE.yaml)")
    return open_dataset(source, split, masks=MaskReader(classes, _parsed(label_map)), **options), classes


def _parsed(label_map: str | None) -> dict[int, int | str | None]:
    try:
        tree = yaml.safe_load(label_map or "{}")
    except yaml.YAMLError:
        tree = None
    if not isinstance(tree, dict) or not all(
        isinstance(i, int) and isinstance(c, int | str | None) for i, c in tree.items()
    ):
        raise ValueError(f"label_map {label_map!r}: write ids and classes such as {{1: dog, 2: sofa, 7: null}}")
    return tree


def classes_of_dataset(source: str) -> Benchmark | None:
    """Whose classes the masks of a dataset hold, by the class table in its folder; None where nobody knows."""
    if source.partition(":")[0] == "scenes":
        return load_benchmark("scenes")
    return load_benchmark(source) if (Path(source) / CLASS_TABLE).is_file() else None
