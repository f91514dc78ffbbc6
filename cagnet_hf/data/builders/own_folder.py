"""A folder of one's own photographs and masks.

    classes.yaml       the class table: names, seen and unseen (see `benchmarks`)
    images/*.jpg       and their masks, of equal names but for the suffix:
    masks/*.png        ids; or colours, of the table's `color`s or else of the PASCAL palette
    metadata.jsonl     instead of equal names: lines {"file_name": "a.jpg", "mask_file_name": "b.png"}
    test.txt           names of the test images; without it a share of all is held out

or the same, without test.txt, in each of train/ and test/, beside classes.yaml. Where there is no test/, val/ is the
folder to test on.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ..benchmarks import CLASS_TABLE, Benchmark, read_class_table
from ..examples import Example, pair_by_stem
from ..image_inputs import IMAGE_SUFFIXES
from .archives import AnyPath, open_source, read_lines, require

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")  # those that keep ids as they are
_LOSSY = (".jpg", ".jpeg")
METADATA = "metadata.jsonl"
LISTED = "test.txt"


def folder_examples(
    source: str | Path, test_share: float = 0.2, roles: Mapping[str, Sequence[str]] | None = None
) -> tuple[dict[str, list[Example]], Benchmark]:
    """The pairs of image and mask by split, and the benchmark of the class table. No image is opened yet.

    Args:
        source: The folder, or an archive of what it holds.
        test_share: The share of the images to hold out where the folder does not say which: a function of their names.
        roles: Which classes are unseen and which are ignored, in place of what the class table says.

    Raises:
        FileNotFoundError: A part named above is missing.
        ValueError: `test_share` is no share, the class table is wrong, two files have one name, a mask is a JPEG, or a
            list is wrong.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"--test_share {test_share}: choose a share between 0 and 1")
    root = open_source(source)
    if not (root / CLASS_TABLE).exists():  # it may lie one level below, as in an archive of the folder
        root = next((path for path in root.iterdir() if (path / CLASS_TABLE).is_file()), root)
    table = require(root / CLASS_TABLE, "the class table: classes (id, name), seen, unseen")
    benchmark = read_class_table(table, Path(source).absolute().stem, roles)
    tested = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if (root / "train").is_dir() and tested is not None:
        return {"train": _pairs(root / "train"), "test": _pairs(tested)}, benchmark
    pairs = _pairs(root)
    if (root / LISTED).is_file():
        held_out = _listed_names(root / LISTED, pairs)
        unknown = sorted(held_out - {pair.image_id for pair in pairs})
        if unknown:
            raise ValueError(f"{root / LISTED}: no image is called {unknown[0]!r}")
    else:
        by_hash = sorted(pairs, key=lambda pair: zlib.crc32(pair.image_id.encode()))
        held_out = {pair.image_id for pair in by_hash[: max(1, round(test_share * len(pairs)))]}
    return {
        "train": [pair for pair in pairs if pair.image_id not in held_out],
        "test": [pair for pair in pairs if pair.image_id in held_out],
    }, benchmark


def _listed_names(path: AnyPath, pairs: list[Example]) -> set[str]:
    """The images that a list names, one a line: by their names, or by those of their files."""
    names = {pair.image_id for pair in pairs}
    lines = [line.strip() for line in read_lines(path)]
    listed = {line if line in names else PurePosixPath(line).stem for line in lines if line}
    if not listed:
        raise ValueError(f"{path} lists no images")
    return listed


def _pairs(folder: AnyPath) -> list[Example]:
    if (folder / METADATA).is_file():
        pairs = _listed_pairs(folder)
    else:
        images = require(folder / "images", "the folder of photographs")
        masks = require(folder / "masks", "the folder of masks, named as their images")
        pairs = pair_by_stem(images, masks, IMAGE_SUFFIXES, MASK_SUFFIXES + _LOSSY)
    for pair in pairs:
        if PurePosixPath(pair.mask.name).suffix.lower() in _LOSSY:
            raise ValueError(f"{pair.mask}: a JPEG does not keep the ids of a mask; save it as PNG")
    return pairs


def _listed_pairs(folder: AnyPath) -> list[Example]:
    pairs = []
    for number, line in enumerate(read_lines(folder / METADATA), start=1):
        try:
            row = json.loads(line)
            image, mask = (PurePosixPath(row[key]) for key in ("file_name", "mask_file_name"))
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{folder / METADATA}, line {number}: no object with file_name and mask_file_name"
            ) from None
        pairs.append(Example(image.stem, folder / str(image), folder / str(mask)))
    return pairs
