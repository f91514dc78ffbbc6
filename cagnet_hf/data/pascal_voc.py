"""Pascal VOC 2012 as it is distributed, with the augmented segmentation masks of SBD.

    VOCdevkit/VOC2012/JPEGImages/*.jpg
                      SegmentationClassAug/*.png
                      ImageSets/Segmentation/{train_aug,val}.txt

The zero-shot literature trains on `train_aug` = (VOC train ∪ SBD) − VOC val, 10,582 images, and tests on
`val`, 1,449 images.
"""

from pathlib import Path

from .examples import Example

DESCRIPTION = "Pascal VOC 2012, train_aug (VOC train and SBD, without VOC val) and val."
LISTS = {"train": "train_aug.txt", "test": "val.txt"}


def pascal_voc_examples(source: str | Path) -> dict[str, list[Example]]:
    """The pairs of image and mask by split, in the order of the official lists. No image is opened yet.

    Args:
        source: The folder `VOC2012`, the `VOCdevkit` that holds it, or the folder that holds `VOCdevkit`.

    Raises:
        FileNotFoundError: The folder is none of these, or lacks one of the parts named above.
        ValueError: A list is empty, or `val` shares images with `train_aug`.
    """
    root = _voc2012(Path(source))
    images = _require(root / "JPEGImages", "the folder of JPEG images")
    masks = _require(root / "SegmentationClassAug", "a folder of PNG masks, VOC's and SBD's, one per image")
    ids = {
        split: _read_list(_require(root / "ImageSets" / "Segmentation" / name, f"the list of {split} image ids"))
        for split, name in LISTS.items()
    }
    shared = sorted(set(ids["train"]) & set(ids["test"]))
    if shared:
        raise ValueError(
            f"{root}: {len(shared)} images of {LISTS['test']} are also in {LISTS['train']} "
            f"(first: {shared[0]}); remove them there, or test images are trained on"
        )
    return {
        split: [Example(i, image=images / f"{i}.jpg", mask=masks / f"{i}.png") for i in ids[split]] for split in ids
    }


def _voc2012(source: Path) -> Path:
    for root in (source, source / "VOC2012", source / "VOCdevkit" / "VOC2012"):
        if (root / "JPEGImages").is_dir():
            return root
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder")
    raise FileNotFoundError(f"{source}: no VOCdevkit/VOC2012/JPEGImages in it; give the folder that holds VOCdevkit")


def _require(path: Path, what: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: expected {what}")
    return path


def _read_list(path: Path) -> list[str]:
    """Image ids, one a line; a line may also be `/JPEGImages/ID.jpg /SegmentationClassAug/ID.png`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    ids = [Path(line.split()[0]).stem for line in lines if line.strip()]
    if not ids:
        raise ValueError(f"{path} lists no images")
    return ids
