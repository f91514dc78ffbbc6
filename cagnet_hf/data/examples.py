"""An example: an image and its mask as files, checked against each other and against the label set."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from .label_space import LabelSpace
from .samples import File, check_sizes, check_upright, read_encoded
from .threads import map_in_order


@dataclass(frozen=True)
class Example:
    """An image and its mask, not read yet."""

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
        images, masks: Folders (`pathlib.Path`, or `zipfile.Path` in an archive).

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
        name = PurePosixPath(file.name)
        if name.suffix.lower() in suffixes and not file.name.startswith("."):  # macOS leaves ._NAME beside files
            if name.stem in files:
                raise ValueError(f"{file}: {files[name.stem].name} has the same name but for the suffix; keep one")
            files[name.stem] = file
    return files


def check_example(example: Example, labels: LabelSpace) -> CheckedExample:
    """Read both files. The image keeps its bytes; the mask becomes an 8-bit grey PNG of stored ids.

    Raises:
        BrokenFileError: A file cannot be read or decoded to its end.
        ValueError: The mask cannot be read (see `LabelSpace.read`), its size differs from the image's, or it holds an
            id outside the label set.
    """
    image_bytes, image = read_encoded(example.image)
    mask_bytes, mask = read_encoded(example.mask)
    check_upright(mask_bytes, str(example.mask))
    check_sizes(image, mask, f"{example.mask} (image {example.image})")
    stored_ids = labels.read(mask, str(example.mask))
    labels.to_model_order(stored_ids, source=str(example.mask))  # refuses ids that it does not know
    if (mask.mode, mask.format) != ("L", "PNG"):
        mask_bytes = encode_mask(stored_ids)
    num_pixels = np.bincount(stored_ids.ravel(), minlength=256)
    return CheckedExample(example.image_id, image_bytes, mask_bytes, image.size, num_pixels)


def check_examples(
    examples: Iterable[Example], labels: LabelSpace, num_threads: int | None = None
) -> Iterator[CheckedExample | ValueError]:
    """`check_example` of each, in order; a refused one yields its error."""

    def check(example: Example) -> CheckedExample | ValueError:
        try:
            return check_example(example, labels)
        except ValueError as error:
            return error

    return map_in_order(check, examples, num_threads)


def encode_mask(stored_ids: np.ndarray) -> bytes:
    """Stored ids `(H, W)` uint8 -> PNG in mode L (`datasets` would store a palette image as a huge TIFF)."""
    buffer = io.BytesIO()
    Image.fromarray(stored_ids).save(buffer, "PNG")
    return buffer.getvalue()
