"""An example: an image and its mask as files, checked against each other and against the label set."""

import io
import os
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..benchmarks import LabelMap


class File(Protocol):
    """An encoded image: a `Path`, or anything else that reads like one. `str(file)` names it in errors."""

    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True)
class Example:
    """An image and its mask of stored ids, not read yet."""

    image_id: str
    image: File
    mask: File


@dataclass(frozen=True)
class CheckedExample:
    """The files of a valid example, its size, and how many pixels of each stored id its mask holds: `(256,)` int64."""

    image_id: str
    image_bytes: bytes
    mask_bytes: bytes
    size: tuple[int, int]  # width, height
    num_pixels: np.ndarray


def pair_by_stem(images, masks, image_suffixes: Sequence[str], mask_suffixes: Sequence[str]) -> list[Example]:
    """Images and masks of equal names but for the suffix, sorted by name. One that stands alone is a broken pair.

    Args:
        images, masks: Folders (`pathlib.Path` or `ArchivePath`).

    Raises:
        ValueError: Two files of a folder differ in the suffix only.
    """
    image_of, mask_of = _by_stem(images, image_suffixes), _by_stem(masks, mask_suffixes)
    return [
        Example(
            stem,
            image_of.get(stem, images / (stem + image_suffixes[0])),
            mask_of.get(stem, masks / (stem + mask_suffixes[0])),
        )
        for stem in sorted(image_of.keys() | mask_of.keys())
    ]


def _by_stem(folder, suffixes: Sequence[str]) -> dict[str, File]:
    files = {}
    for file in sorted(folder.iterdir(), key=str):
        if file.suffix.lower() in suffixes and not file.name.startswith("."):  # macOS leaves ._NAME beside files
            if file.stem in files:
                raise ValueError(f"{file}: {files[file.stem].name} has the same name but for the suffix; keep one")
            files[file.stem] = file
    return files


class BrokenFileError(ValueError):
    """A file that is missing, truncated or no image at all."""


def check_example(example: Example, label_map: LabelMap) -> CheckedExample:
    """Read both files. The image keeps its bytes; the mask becomes an 8-bit grey PNG of stored ids.

    Raises:
        BrokenFileError: A file cannot be read or decoded to its end.
        ValueError: The mask is no 8-bit grey or palette image, its size differs from the image's, or it holds
            an id outside the label set.
    """
    image_bytes, image = read_encoded(example.image)
    mask_bytes, mask = read_encoded(example.mask)
    if image.getexif().get(ExifTags.Base.Orientation) is not None:
        image = ImageOps.exif_transpose(image)  # as `datasets` does when a row is read
    if mask.size != image.size:
        sizes = "{}x{} differs from the {}x{}".format(*mask.size, *image.size)
        raise ValueError(f"{example.mask}: the mask's size {sizes} of its image {example.image}")
    if mask.mode not in ("L", "P"):
        raise ValueError(f"{example.mask}: mode {mask.mode}; a mask must be an 8-bit grey or palette image")
    stored_ids = np.asarray(mask)  # of a palette image the indices, not the colours
    num_pixels = np.bincount(stored_ids.ravel(), minlength=256)
    present = np.flatnonzero(num_pixels).astype(np.uint8)
    label_map.to_model_order(present[None], source=str(example.mask))  # refuses ids it does not know
    if (mask.mode, mask.format) != ("L", "PNG"):
        mask_bytes = encode_mask(stored_ids)
    return CheckedExample(example.image_id, image_bytes, mask_bytes, image.size, num_pixels)


def check_examples(
    examples: Iterable[Example], label_map: LabelMap, num_threads: int | None = None
) -> Iterator[CheckedExample | ValueError]:
    """`check_example` of each, in order; a refused one yields its error. Few are in memory at a time.

    Threads are enough, without the cost of processes: decoding and encoding free the interpreter.
    """

    def check(example: Example) -> CheckedExample | ValueError:
        try:
            return check_example(example, label_map)
        except ValueError as error:
            return error

    num_threads = num_threads or os.cpu_count() or 1
    with ThreadPoolExecutor(num_threads) as pool:
        pending = deque()
        for example in examples:
            pending.append(pool.submit(check, example))
            if len(pending) > 8 * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def encode_mask(stored_ids: np.ndarray) -> bytes:
    """Stored ids `(H, W)` uint8 -> PNG in mode L (`datasets` would store a palette image as a huge TIFF)."""
    buffer = io.BytesIO()
    Image.fromarray(stored_ids).save(buffer, "PNG")
    return buffer.getvalue()


def read_image(file: File) -> Image.Image:
    """An image, decoded to its end; raises `BrokenFileError`."""
    return read_encoded(file)[1]


def read_encoded(file: File) -> tuple[bytes, Image.Image]:
    """The bytes of an image and the image, decoded to its end; raises `BrokenFileError`."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BrokenFileError(f"{file}: {error.strerror or error}") from error
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except UnidentifiedImageError as error:
        raise BrokenFileError(f"{file}: not an image") from error
    except Image.DecompressionBombError as error:
        raise BrokenFileError(f"{file}: too large to be decoded safely, shrink it first ({error})") from error
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
        raise BrokenFileError(f"{file}: truncated or damaged ({error})") from error
    return data, image
