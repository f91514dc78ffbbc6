"""Opens a dataset, and finds its classes, by what the user calls it."""

from pathlib import Path

from datasets import Dataset

from ..benchmarks import CLASS_TABLE, Benchmark, load_benchmark
from .prepared import open_prepared
from .scenes import scenes_dataset


def open_dataset(source: str, split: str, *, image_column: str = "image", mask_column: str = "mask") -> Dataset:
    """A split with the columns `image`, `mask`, `image_id`.

    Args:
        source: `"scenes:SEED"` for the synthetic benchmark, a prepared folder, or a Hub id.
    """
    name, colon, seed = source.partition(":")
    if name == "scenes":
        if colon and not seed.isdecimal():
            raise ValueError(f"dataset {source!r}: write scenes:SEED with a number, such as scenes:0")
        return scenes_dataset(int(seed or 0), split)
    return open_prepared(source, split=split, image_column=image_column, mask_column=mask_column)


def classes_of_dataset(source: str) -> Benchmark | None:
    """Whose classes the masks of a dataset hold, by the class table in its folder; None where nobody knows."""
    if source.partition(":")[0] == "scenes":
        return load_benchmark("scenes")
    return load_benchmark(source) if (Path(source) / CLASS_TABLE).is_file() else None
