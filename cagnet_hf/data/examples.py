"""An example: an image and its mask as files, checked against each other and against the label set."""

import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..model.decoding_cagnet import eight_bit
from .benchmarks import LabelMap
from .threads import map_in_order


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
    check_sizes(image, mask, str(example.mask), str(example.image))
    if mask.mode not in ("L", "P"):
        raise ValueError(f"{example.mask}: mode {mask.mode}; a mask must be an 8-bit grey or palette image")
    stored_ids = np.asarray(mask)  # of a palette image the indices, not the colours
    num_pixels = np.bincount(stored_ids.ravel(), minlength=256)
    present = np.flatnonzero(num_pixels).astype(np.uint8)
    label_map.to_model_order(present[None], source=str(example.mask))  # refuses ids it does not know
    if (mask.mode, mask.format) != ("L", "PNG"):
        mask_bytes = _without_palette(mask_bytes) or encode_mask(stored_ids)
    return CheckedExample(example.image_id, image_bytes, mask_bytes, image.size, num_pixels)


def check_examples(
    examples: Iterable[Example], label_map: LabelMap, num_threads: int | None = None
) -> Iterator[CheckedExample | ValueError]:
    """`check_example` of each, in order; a refused one yields its error."""

    def check(example: Example) -> CheckedExample | ValueError:
        try:
            return check_example(example, label_map)
        except ValueError as error:
            return error

    return map_in_order(check, examples, num_threads)


def check_sizes(image: Image.Image, mask: Image.Image, mask_name: str, image_name: str) -> None:
    if mask.size != image.size:
        sizes = "{}x{} differs from the {}x{}".format(*mask.size, *image.size)
        raise ValueError(f"{mask_name}: the mask's size {sizes} of its image {image_name}")


def encode_mask(stored_ids: np.ndarray) -> bytes:
    """Stored ids `(H, W)` uint8 -> PNG in mode L (`datasets` would store a palette image as a huge TIFF)."""
    buffer = io.BytesIO()
    Image.fromarray(stored_ids).save(buffer, "PNG")
    return buffer.getvalue()


_PNG = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3  # types of colour in a PNG's header


def _without_palette(data: bytes) -> bytes | None:
    """A PNG of 8-bit palette indices as one of grey values; None for other files.

    Both hold the same compressed bytes: other are the header, the palette and what describes it.
    """
    if not data.startswith(_PNG):
        return None
    chunks, start = [], len(_PNG)
    while start + 8 <= len(data):
        length, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        end = start + 12 + length
        if kind == b"IHDR":
            depth, color = data[start + 16], data[start + 17]
            if (depth, color) != (8, _PALETTE):
                return None
            header = data[start + 4 : start + 17] + bytes([_GREY]) + data[start + 18 : end - 4]
            chunks.append(data[start : start + 4] + header + zlib.crc32(header).to_bytes(4, "big"))
        elif kind in (b"IDAT", b"IEND"):
            chunks.append(data[start:end])
        start = end
    return _PNG + b"".join(chunks)


def read_image(file: File) -> Image.Image:
    """An image of 8 bits, decoded to its end; raises `BrokenFileError`."""
    return eight_bit(read_encoded(file)[1])


def read_encoded(file: File) -> tuple[bytes, Image.Image]:
    """The bytes of an image and the image, decoded to its end; raises `BrokenFileError`."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BrokenFileError(f"{file}: {error.strerror or error}") from error
    with decoding(file):
        image = Image.open(io.BytesIO(data))
        image.load()
    return data, image


@contextmanager
def decoding(file: object) -> Iterator[None]:
    """Whatever Pillow raises within becomes a `BrokenFileError` that names the file."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise BrokenFileError(f"{file}: not an image") from error
    except Image.DecompressionBombError as error:
        raise BrokenFileError(f"{file}: too large to be decoded safely, shrink it first ({error})") from error
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
        raise BrokenFileError(f"{file}: truncated or damaged ({error})") from error
