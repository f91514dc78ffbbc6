"""Pascal VOC 2012 as it is distributed, with the training masks of SBD.

    VOCdevkit/VOC2012/JPEGImages/*.jpg
                      ImageSets/Segmentation/{train_aug,val}.txt
                      SegmentationClassAug/*.png

or, without the last two, VOC's own masks and the Semantic Boundaries Dataset as it is distributed:

    VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt
                      SegmentationClass/*.png
    benchmark_RELEASE/dataset/{train,val}.txt
                              cls/*.mat

The zero-shot literature trains on `train_aug` = (VOC train ∪ SBD train ∪ SBD val) − VOC val, 10,582 images, and tests
on `val`, 1,449 images.
"""

from pathlib import Path

import numpy as np

from ..examples import Example
from .archives import AnyPath, find_root, open_source, read_list, refuse_shared, require
from .mat_files import import_loadmat, mat_mask

LISTS = {"train": "train_aug.txt", "test": "val.txt"}


def pascal_voc_examples(source: str | Path, sbd: str | Path | None = None) -> dict[str, list[Example]]:
    """The pairs of image and mask by split. No image is opened yet.

    Args:
        source: The folder `VOC2012`, the `VOCdevkit` that holds it, the folder that holds `VOCdevkit`, or an archive
            of these. Without `sbd` it has a `SegmentationClassAug`.
        sbd: The folder `benchmark_RELEASE`, one above or below it, or the archive `benchmark.tgz`. Where VOC and SBD
            both have a mask, VOC's is taken.

    Raises:
        FileNotFoundError: A source is none of these, or lacks one of the parts named above.
        ValueError: A list is empty, `val` shares images with `train_aug`, or scipy is missing.
    """
    root = voc_root(source, "VOC2012")
    images = require(root / "JPEGImages", "the folder of JPEG images")
    lists = root / "ImageSets" / "Segmentation"
    if sbd is not None:
        return _with_sbd(root, images, lists, sbd)
    masks = require(
        root / "SegmentationClassAug",
        "a folder of PNG masks, VOC's and SBD's, one per image; or give SBD itself (--sbd)",
    )
    ids = {split: read_list(require(lists / name, f"the list of {split} image ids")) for split, name in LISTS.items()}
    refuse_shared(root, ids, LISTS)
    return {split: [Example(i, images / f"{i}.jpg", masks / f"{i}.png") for i in some] for split, some in ids.items()}


def _with_sbd(root: AnyPath, images: AnyPath, lists: AnyPath, sbd: str | Path) -> dict[str, list[Example]]:
    import_loadmat()
    masks = require(root / "SegmentationClass", "the folder of VOC's PNG masks")
    train = read_list(require(lists / "train.txt", "VOC's list of training image ids"))
    val = read_list(require(lists / "val.txt", "VOC's list of test image ids"))
    benchmark = find_root(
        open_source(sbd, lambda name: name.endswith((".txt", ".mat")) and "/inst/" not in name),
        ["", "dataset", "benchmark_RELEASE/dataset"],
        "cls",
        "no benchmark_RELEASE/dataset/cls in it; give SBD's folder or archive",
    )
    in_sbd = [read_list(require(benchmark / name, "SBD's list of image ids")) for name in ("train.txt", "val.txt")]
    more = sorted(set().union(*in_sbd) - set(train) - set(val))
    return {
        "train": [
            *(Example(i, images / f"{i}.jpg", masks / f"{i}.png") for i in train if i not in set(val)),
            *(Example(i, images / f"{i}.jpg", mat_mask(benchmark / "cls" / f"{i}.mat", _sbd_map)) for i in more),
        ],
        "test": [Example(i, images / f"{i}.jpg", masks / f"{i}.png") for i in val],
    }


def _sbd_map(variables: dict) -> np.ndarray:
    return variables["GTcls"]["Segmentation"][0, 0]


def voc_root(source: str | Path, year: str) -> AnyPath:
    """The folder `VOC2012` (or another year's) in a folder or archive that holds it at any level of the devkit."""
    return find_root(
        open_source(source),
        ["", year, f"VOCdevkit/{year}"],
        "JPEGImages",
        f"no VOCdevkit/{year}/JPEGImages in it; give the folder that holds VOCdevkit, or its archive",
    )
