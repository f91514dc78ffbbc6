"""Rows of a dataset, on disk or on the Hub, whole or streamed.

Rows are kept as they are stored and decoded when read, so that a broken one is named and one that is passed over costs
nothing. Both kinds give samples: in stored order when iterated, and one by its key; `shuffled` gives the keys.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Image, IterableDataset
from fsspec.core import url_to_fs

from .label_space import LabelSpace
from .samples import Sample, decode_row


class Rows:
    """A split that is opened whole. The key of a row is its number.

    Args:
        dataset: With the columns `image`, `mask` and `image_id`.
        labels: What the masks show.
    """

    def __init__(self, dataset: Dataset, labels: LabelSpace | None = None):
        columns = {"image", "mask"} & set(dataset.column_names)
        self.dataset, self.labels = undecoded(dataset, *columns), labels or LabelSpace()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Sample:
        return decode_row(self.dataset[row], self.labels)

    def __iter__(self) -> Iterator[Sample]:
        return self.share(0, 1)

    def share(self, process: int, processes: int) -> Iterator[Sample]:
        """The samples of one of several processes."""
        return (self[row] for row in range(process, len(self), processes))

    def shuffled(self, seed: int) -> list[int]:
        """The keys of all rows in an order that depends on `seed` alone."""
        return np.random.default_rng(seed).permutation(len(self)).tolist()

    def without_images(self) -> "Rows":
        """The masks alone: no image is decoded."""
        return Rows(self.dataset.select_columns(["mask", "image_id"]), self.labels)

    def image_ids(self, rows: Sequence[int]) -> list[str]:
        """What the rows of these keys are called."""
        return [str(image_id) for image_id in self.dataset.select_columns("image_id")[rows]["image_id"]]

    def fingerprint(self, *, contents: bool = False) -> dict:
        """The number of images, and a digest of image ids, masks and sizes of image files: nothing is decoded.

        With `contents` the digest is that of the bytes of the image files, too, which are read.
        """
        digest = hashlib.blake2b(digest_size=16)
        for table in self.dataset.with_format("arrow").iter(batch_size=256):
            images, masks = table["image"].combine_chunks(), table["mask"].combine_chunks()
            sizes = pc.binary_length(images.field("bytes")).to_pylist()
            for image_id, size, mask in zip(table["image_id"].to_pylist(), sizes, masks.to_pylist(), strict=True):
                digest.update(f"{image_id}\0{size}\0".encode())
                digest.update(mask["bytes"] or str(mask["path"]).encode())
            if contents:
                for image in images.to_pylist():
                    digest.update(image["bytes"] or str(image["path"]).encode())
        return {"num_images": len(self), "digest": digest.hexdigest()}


class StreamedRows:
    """A split that is read from its start, a few rows in memory. The key of a row is the row as it is stored.

    Args:
        rows: `image`, `mask` and `image_id`, not decoded.
        labels: What the masks show.
        shuffle_buffer: How many rows wait, encoded, to be drawn from.
        files: Where the rows are read from.
    """

    def __init__(self, rows: IterableDataset, labels: LabelSpace, shuffle_buffer: int, files: Sequence[str] = ()):
        self.rows, self.labels, self.shuffle_buffer, self.files = rows, labels, shuffle_buffer, files

    def __getitem__(self, row: dict) -> Sample:
        return decode_row(row, self.labels)

    def __iter__(self) -> Iterator[Sample]:
        return self.share(0, 1)

    def share(self, process: int, processes: int) -> Iterator[Sample]:
        """The samples of one of several processes."""
        return (self[row] for row in islice(self.rows, process, None, processes))

    def shuffled(self, *seed: int) -> Iterator[dict]:
        """The keys of all rows in an order that depends on `seed` and the buffer alone."""
        seed = int(np.random.default_rng(seed).integers(2**31))
        return iter(self.rows.shuffle(seed=seed, buffer_size=self.shuffle_buffer))

    def without_images(self) -> "StreamedRows":
        """The masks alone: no image is decoded."""
        rows = self.rows.select_columns(["mask", "image_id"])
        return StreamedRows(rows, self.labels, self.shuffle_buffer, self.files)

    def image_ids(self, rows: Sequence[dict]) -> list[str]:
        """What the rows of these keys are called."""
        return [str(row["image_id"]) for row in rows]

    def fingerprint(self, *, contents: bool = False) -> dict:
        """The number of files, and a digest of their names, sizes and, on the Hub, contents: none is read."""
        digest = hashlib.blake2b(digest_size=16)
        for file in self.files:
            filesystem, path = url_to_fs(file)
            info = filesystem.info(path)
            content = info.get("blob_id") or info.get("ETag") or ""
            digest.update(f"{os.path.basename(path)}\0{info.get('size')}\0{content}\0".encode())
        return {"num_files": len(self.files), "digest": digest.hexdigest()}


def undecoded(rows, *columns: str):
    """Rows whose columns of images are what is stored: {"bytes", "path"}."""
    for column in columns:
        rows = rows.cast_column(column, Image(decode=False))
    return rows
