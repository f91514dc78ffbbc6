"""COCO-Stuff as it is distributed: the images of COCO 2017 and their label maps of things and stuff.

    train2017/*.jpg                                        or train2017.zip
    val2017/*.jpg                                          or val2017.zip
    stuffthingmaps_trainval2017/{train2017,val2017}/*.png  or stuffthingmaps_trainval2017.zip

The value of a pixel is its id, 0 to 181; 255 is unlabelled.
"""

from pathlib import Path

from ..examples import Example, pair_by_stem
from .archives import AnyPath, find_root, open_source, refuse_shared

FOLDERS = {"train": "train2017", "test": "val2017"}
MAPS = "stuffthingmaps_trainval2017"


def coco_stuff_examples(source: str | Path) -> dict[str, list[Example]]:
    """The pairs of image and mask by split. No image is opened yet.

    Args:
        source: The folder that holds the folders or archives named above.

    Raises:
        FileNotFoundError: One of them is missing.
        ValueError: An archive is damaged, or an image is in both splits.
    """
    source = Path(source)
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder; give the one that holds train2017 or train2017.zip")
    maps = _part(source, MAPS)
    examples = {}
    for split, name in FOLDERS.items():
        masks = find_root(maps, ["", MAPS], name, f"no {name} in it; get the official {MAPS}.zip") / name
        examples[split] = pair_by_stem(_images(source, name), masks, [".jpg"], [".png"])
    refuse_shared(source, {split: [e.image_id for e in some] for split, some in examples.items()}, FOLDERS)
    return examples


def _images(source: Path, name: str) -> AnyPath:
    part = _part(source, name)
    return part if part == source / name else find_root(part, [""], name, f"no folder {name} in it") / name


def _part(source: Path, name: str) -> AnyPath:
    """The folder, or else the archive of that name."""
    for path in (source / name, source / f"{name}.zip"):
        if path.exists():
            return open_source(path)
    raise FileNotFoundError(f"{source}: neither {name} nor {name}.zip in it")
