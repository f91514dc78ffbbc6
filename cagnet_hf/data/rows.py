"""Rows of any dataset with an image and a mask column, on disk or on the Hub, whole or streamed.

Rows are kept as they are stored and decoded when read, so that a broken one is named and one that is passed over costs
nothing.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from datasets import Dataset, Features, Image, IterableDataset, load_dataset_builder
from fsspec.core import url_to_fs
from PIL import Image as PilImage

from ..model.decoding_cagnet import eight_bit
from .examples import check_sizes, decoding
from .masks import MaskReader


class RowDecoder:
    """Rows as they are stored -> an image of 8 bits, a mask of stored ids in mode L, and `image_id`."""

    def __init__(self, masks: MaskReader):
        self.masks = masks

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Columns of some rows, as `Dataset.with_transform` gives them."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        rows = [self.decode(row) for row in rows]
        return {column: [row[column] for row in rows] for column in batch}

    def decode(self, row: dict) -> dict:
        """A row, or some columns of it.

        Raises:
            BrokenFileError: An image cannot be decoded to its end.
            ValueError: A mask differs in size from its image, or cannot be read (see `MaskReader`).
        """
        row, where = dict(row), row.get("image_id", "a row")
        for column in row.keys() & {"image", "mask"}:
            name = f"{column} of {where}"
            if row[column] is None:
                raise ValueError(f"{name}: there is none")
            with decoding(name):
                row[column] = Image().decode_example(row[column])
        if {"image", "mask"} <= row.keys():
            check_sizes(row["image"], row["mask"], f"mask of {where}", where)
        if "image" in row:
            row["image"] = eight_bit(row["image"])
        if "mask" in row:
            row["mask"] = PilImage.fromarray(self.masks(row["mask"], f"mask of {where}"))
        return row


def decoded(rows: Dataset, masks: MaskReader) -> Dataset:
    """Rows with the columns `image`, `mask`, `image_id`, decoded when read."""
    return undecoded(rows, "image", "mask").with_transform(RowDecoder(masks))


def undecoded(rows, *columns: str):
    """Rows whose columns of images are what is stored: {"bytes", "path"}."""
    for column in columns:
        rows = rows.cast_column(column, Image(decode=False))
    return rows


def check_columns(name: str, features: Features, *columns: str) -> None:
    """Refuse a dataset that lacks a column, or whose column holds no images."""
    for column in columns:
        if column not in features:
            raise ValueError(f"{name}: no column {column!r}; it has {', '.join(features)}")
        if not isinstance(features[column], Image):
            raise ValueError(f"{name}: column {column!r} holds {features[column]}, not images")


class StreamedRows:
    """A split that is read from its start, a few rows in memory: no row has a number.

    Iterating gives decoded rows in stored order; `shuffled`, rows as they are stored, which indexing decodes.

    Args:
        rows: `image`, `mask` and `image_id`, not decoded.
        shuffle_buffer: How many rows wait, encoded, to be drawn from.
        files: Where the rows are read from.
    """

    def __init__(self, rows: IterableDataset, masks: MaskReader, shuffle_buffer: int, files: Sequence[str] = ()):
        self.rows, self.shuffle_buffer, self.files = rows, shuffle_buffer, files
        self._decoder = RowDecoder(masks)

    def __iter__(self) -> Iterator[dict]:
        return self.share(0, 1)

    def share(self, process: int, processes: int) -> Iterator[dict]:
        """The decoded rows of one of several processes."""
        return (self._decoder.decode(row) for row in islice(self.rows, process, None, processes))

    def shuffled(self, *seed: int) -> Iterator[dict]:
        """The rows in an order that depends on `seed` and the buffer alone."""
        seed = int(np.random.default_rng(seed).integers(2**31))
        return iter(self.rows.shuffle(seed=seed, buffer_size=self.shuffle_buffer))

    def __getitem__(self, row: dict) -> dict:
        return self._decoder.decode(row)

    def without_images(self) -> "StreamedRows":
        """The masks alone: no image is decoded."""
        rows = self.rows.select_columns(["mask", "image_id"])
        return StreamedRows(rows, self._decoder.masks, self.shuffle_buffer, self.files)

    def fingerprint(self) -> dict:
        """The number of files, and a digest of their names, sizes and, on the Hub, contents: none is read."""
        digest = hashlib.blake2b(digest_size=16)
        for file in self.files:
            filesystem, path = url_to_fs(file)
            info = filesystem.info(path)
            content = info.get("blob_id") or info.get("ETag") or ""
            digest.update(f"{os.path.basename(path)}\0{info.get('size')}\0{content}\0".encode())
        return {"num_files": len(self.files), "digest": digest.hexdigest()}


def open_streamed(
    path_or_hub_id: str | os.PathLike,
    *,
    split: str,
    image_column: str,
    mask_column: str,
    masks: MaskReader,
    shuffle_buffer: int,
) -> StreamedRows:
    """A split of a dataset that is not downloaded first; its rows are called by their file where they have no id.

    Raises:
        ValueError: A column is missing or holds no images.
    """
    name = os.fspath(path_or_hub_id)
    builder = load_dataset_builder(name)
    rows = builder.as_streaming_dataset(split=split)
    rows = rows if rows.features is not None else rows._resolve_features()
    check_columns(name, rows.features, image_column, mask_column)
    rows = undecoded(rows, image_column, mask_column)  # first: what comes later would decode
    named = ["image_id"] if "image_id" in rows.features else []
    rows = rows.select_columns([image_column, mask_column, *named])
    names = {image_column: "image", mask_column: "mask"}
    rows = rows.rename_columns({theirs: ours for theirs, ours in names.items() if theirs != ours})
    if not named:
        rows = rows.map(_name_by_file)
    return StreamedRows(rows, masks, shuffle_buffer, (builder.config.data_files or {}).get(split, ()))


def _name_by_file(row: dict) -> dict:
    return {"image_id": os.path.basename(row["image"]["path"] or "") or "a row without image_id"}
