"""Pascal-Context with its 33 classes, as it is distributed: labels of its own for the images of VOC 2010.

    VOCdevkit/VOC2010/JPEGImages/*.jpg
                      ImageSets/Main/{train,val}.txt
    33_context_labels/*.png       ids 1 to 33, 0 = unlabelled
 or trainval/*.mat                `LabelMap` of labels that labels.txt names, 459 or fewer
    labels.txt                    lines such as `2: aeroplane`

The label set is one of three called Pascal-Context; numbers beside the 33 become 0.
"""

import re
from pathlib import Path, PurePosixPath

import numpy as np

from ..benchmarks import Benchmark, load_benchmark
from ..examples import Example
from .archives import AnyPath, open_source, read_lines, read_list, refuse_shared, require
from .mat_files import import_loadmat, mat_mask
from .pascal_voc import voc_root

LISTS = {"train": "train.txt", "test": "val.txt"}
# What labels.txt calls a class, where that is not our name.
_ALIASES = {"diningtable": "table", "tv": "tvmonitor"}


def pascal_context_examples(source: str | Path, labels: str | Path) -> dict[str, list[Example]]:
    """The pairs of image and mask by split. No image is opened yet.

    Args:
        source: VOC 2010, a folder or an archive (see `pascal_voc_examples`).
        labels: The folder of label files, one above it, or the archive `33_context_labels.tar.gz` or
            `trainval.tar.gz`; `labels.txt` lies in it or beside it.

    Raises:
        FileNotFoundError: A source is none of these, or lacks one of the parts named above.
        ValueError: `labels.txt` lacks a class, the lists share images, or scipy is missing.
    """
    root = voc_root(source, "VOC2010")
    images = root / "JPEGImages"
    ids = {
        split: read_list(require(root / "ImageSets" / "Main" / name, f"VOC's list of {split} image ids"))
        for split, name in LISTS.items()
    }
    refuse_shared(root, ids, LISTS)
    tree = open_source(labels)
    folder, suffix = _label_folder(tree)
    if suffix == ".png":
        masks = {i: folder / f"{i}.png" for some in ids.values() for i in some}
    else:
        import_loadmat()
        beside = [place / "labels.txt" for place in (folder, tree, Path(labels).parent)]
        names = next((path for path in beside if path.is_file()), None)
        if names is None:
            raise FileNotFoundError(f"{folder}: .mat files need labels.txt beside them (lines such as `2: aeroplane`)")
        convert = _Numbers(names, load_benchmark("pascal_context")).to_stored_ids
        masks = {i: mat_mask(folder / f"{i}.mat", _label_map, convert) for some in ids.values() for i in some}
    return {split: [Example(i, images / f"{i}.jpg", masks[i]) for i in some] for split, some in ids.items()}


def _label_folder(tree: AnyPath) -> tuple[AnyPath, str]:
    """The folder of label files, and their suffix."""
    inner = "33_context_labels"
    for level in ("", inner, f"{inner}/{inner}", "trainval"):
        if (tree / level).is_dir():
            names = [path.name for path in (tree / level).iterdir() if not path.name.startswith(".")]
            suffixes = {PurePosixPath(name).suffix for name in names}
            for suffix in (".png", ".mat"):
                if suffix in suffixes:
                    return tree / level, suffix
    raise FileNotFoundError(f"{tree}: no label files in it; give {inner} (*.png) or trainval (*.mat)")


def _label_map(variables: dict) -> np.ndarray:
    return variables["LabelMap"]


class _Numbers:
    """The labels of `labels.txt` -> stored ids, by name."""

    def __init__(self, path: AnyPath, benchmark: Benchmark):
        self.path = path
        lines = [line.partition(":") for line in read_lines(path) if line.strip()]
        for number, colon, name in lines:
            if not colon or not number.strip().isdecimal():
                raise ValueError(f"{path}: {(number + colon + name).strip()!r} is no line such as `2: aeroplane`")
        numbers = {_plain(name): int(number) for number, _, name in lines}
        self.stored_ids = np.zeros(max(numbers.values()) + 1, np.uint8)
        for stored_id in benchmark.class_ids:
            name = _plain(benchmark.label_names[stored_id])
            alias = _ALIASES.get(name, name)
            if name not in numbers and alias not in numbers:
                raise ValueError(f"{path}: none of its {len(numbers)} labels is {name!r}; get the official file")
            self.stored_ids[numbers[name if name in numbers else alias]] = stored_id

    def to_stored_ids(self, labels: np.ndarray, name: str) -> np.ndarray:
        if labels.max(initial=0) >= len(self.stored_ids):
            raise ValueError(f"{name}: label {labels.max()} is not in {self.path}")
        return self.stored_ids[labels]


def _plain(name: str) -> str:
    """`potted plant`, `potted_plant` -> `pottedplant`."""
    return re.sub(r"[\s_-]", "", name.lower())
