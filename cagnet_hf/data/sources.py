"""Opens a dataset, and finds its classes, by what the user calls it."""

from pathlib import Path

from datasets import Dataset

from ..benchmarks import CLASS_TABLE, Benchmark, load_benchmark
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


def classes_of_dataset(source: str) -> Benchmark | None:
    """Whose classes the masks of a dataset hold, by the class table in its folder; None where nobody knows."""
    if source.partition(":")[0] == "scenes":
        return load_benchmark("scenes")
    return load_benchmark(source) if (Path(source) / CLASS_TABLE).is_file() else None
