"""Opens a dataset by what the user calls it."""

from datasets import Dataset

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
