"""Options that several commands share."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class DatasetOptions:
    """A dataset with masks.

    Attributes:
        dataset: A prepared folder, a Hub id, or scenes:SEED.
        split: The split of the dataset.
        image_column: The column of the images.
        mask_column: The column of the masks.
        benchmark: Name or class table of the masks' classes (default: the dataset's own).
        label_map (YAML): Ids of a dataset that counts otherwise: '{1: dog, 7: null}'.
        streaming: Read rows as they are needed, instead of downloading the dataset first.
    """

    dataset: str
    split: str = "test"
    image_column: str = "image"
    mask_column: str = "mask"
    benchmark: str | None = None
    label_map: str | None = None
    streaming: bool = False
