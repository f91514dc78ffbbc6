"""A sample: an image and its labels as arrays, from the bytes of any file or row."""

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from datasets import Image as ImageFeature
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..model.decoding_cagnet import image_tensor
from .label_space import LabelSpace


class Sample(NamedTuple):
    """What every reader of data gives.

    Attributes:
        image: `(3, H, W)` uint8, RGB, turned as its EXIF data say; None where only labels were asked for.
        labels: `(H, W)` uint8, stored ids.
        id: Names the sample in errors.
    """

    image: torch.Tensor | None
    labels: torch.Tensor
    id: str


class File(Protocol):
    """An encoded image: a `Path`, or anything else that reads like one. `str(file)` names it in errors."""

    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True)
class MadeFile:
    """A file whose bytes are made or fetched when they are asked for."""

    name: str
    read_bytes: Callable[[], bytes]

    def __str__(self) -> str:
        return self.name


class BrokenFileError(ValueError):
    """A file that is missing, truncated or no image at all."""


def decode_row(row: dict, labels: LabelSpace) -> Sample:
    """A row of encoded images, {"bytes", "path"} each, in the columns `image` (it may be absent), `mask`, `image_id`.

    Raises:
        BrokenFileError: An image cannot be decoded to its end.
        ValueError: The mask differs in size from its image, or cannot be read (see `LabelSpace.read`).
    """
    pictures, name = {}, str(row["image_id"])
    for column in ("image", "mask"):
        if column not in row:
            continue
        encoded = row[column] or {}
        data, path = encoded.get("bytes"), encoded.get("path")
        if data is None and path is None:
            raise ValueError(f"{column} of {name}: there is none")
        with decoding(f"{column} of {name}"):
            if column == "mask":
                orientation = _orientation(path if data is None else io.BytesIO(data))
            pictures[column] = ImageFeature().decode_example(row[column])
    image, mask = pictures.get("image"), pictures["mask"]
    _refuse_turned(orientation, f"mask of {name}")
    if image is not None:
        check_sizes(image, mask, f"mask of {name}")
        image = image_tensor(image)
    return Sample(image, torch.from_numpy(labels.read(mask, f"mask of {name}")), name)


def check_upright(mask: bytes, name: str) -> None:
    """Refuse a mask that says it was taken with a turned camera: ids are drawn, and nobody knows what is meant.

    Raises:
        ValueError: The file has an EXIF orientation.
    """
    with decoding(name):
        orientation = _orientation(io.BytesIO(mask))
    _refuse_turned(orientation, name)


def _orientation(file) -> int:
    with Image.open(file) as header:
        return header.getexif().get(ExifTags.Base.Orientation) or 1


def _refuse_turned(orientation: int, name: str) -> None:
    if orientation != 1:
        raise ValueError(f"{name}: a mask with an EXIF orientation ({orientation}): save it upright, without one")


def check_sizes(image: Image.Image, mask: Image.Image, name: str) -> None:
    if mask.size != image.size:
        sizes = "{}x{} differs from the {}x{}".format(*mask.size, *image.size)
        raise ValueError(f"{name}: the mask's size {sizes} of its image")


def read_image(file: File) -> Image.Image:
    """An image, decoded to its end and turned as its EXIF data say; raises `BrokenFileError`."""
    return read_encoded(file)[1]


def read_encoded(file: File) -> tuple[bytes, Image.Image]:
    """The bytes of an image, and what `read_image` gives."""
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise BrokenFileError(f"{file}: {error.strerror or 'No such file in the archive'}") from error
    except OSError as error:
        raise BrokenFileError(f"{file}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise BrokenFileError(f"{file}: damaged in its archive ({error})") from error
    with decoding(file):
        image = Image.open(io.BytesIO(data))
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation) is not None:
            image = ImageOps.exif_transpose(image)  # as `datasets` does when a row is read
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
