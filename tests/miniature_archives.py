"""Datasets in miniature, laid out and encoded as they are distributed, as folders and as archives."""

import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

# The masks of VOC and of a palette file: an object (id 15) with its white border (255) on background (0).
PERSON = np.array([[0, 0, 255, 15, 15]] * 4, np.uint8)


def pascal_palette() -> np.ndarray:
    """VOC's colours `(256, 3)`: the bits of an id, spread over red, green and blue from the highest bit down."""
    colours = np.zeros((256, 3), np.uint8)
    for stored_id in range(256):
        for bit in range(8):
            colours[stored_id, bit % 3] |= (stored_id >> bit & 1) << (7 - bit // 3)
    return colours


def write_jpeg(path: Path, size: tuple[int, int] = (5, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.stem.encode())
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG")


def write_png(path: Path, stored_ids: np.ndarray, *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(stored_ids)
    if palette:
        mask.putpalette(pascal_palette().tobytes())
    mask.save(path, "PNG")


def write_list(path: Path, image_ids: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{image_id}\n" for image_id in image_ids))


def write_devkit(folder: Path, year: str, *, sets: str, train: Sequence[str], val: Sequence[str], more=()) -> Path:
    """VOCdevkit with the images of all, the lists in `ImageSets/{sets}`, and palette masks of train and val."""
    root = folder / "VOCdevkit" / year
    for image_id in (*train, *val, *more):
        write_jpeg(root / "JPEGImages" / f"{image_id}.jpg")
    for image_id in (*train, *val):
        write_png(root / "SegmentationClass" / f"{image_id}.png", PERSON, palette=True)
    write_list(root / "ImageSets" / sets / "train.txt", train)
    write_list(root / "ImageSets" / sets / "val.txt", val)
    return root


def write_sbd(folder: Path, train: Sequence[str], val: Sequence[str], stored_id: int = 8) -> Path:
    """benchmark_RELEASE with images, masks and the instance masks that nobody asked for."""
    root = folder / "benchmark_RELEASE" / "dataset"
    write_list(root / "train.txt", train)
    write_list(root / "val.txt", val)
    for image_id in (*train, *val):
        write_jpeg(root / "img" / f"{image_id}.jpg")
        for kind in ("cls", "inst"):
            (root / kind).mkdir(exist_ok=True)
            mask = np.full((4, 5), stored_id, np.uint8)
            truth = {"Boundaries": np.zeros((20, 1)), "Segmentation": mask, "CategoriesPresent": [[stored_id]]}
            savemat(root / kind / f"{image_id}.mat", {f"GT{kind}": truth}, do_compression=True)
    return root


def write_tar(folder: Path, path: Path, mode: str = "w", prefix: str = "") -> Path:
    """The content of `folder` as a tar (`mode` as of `tarfile.open`)."""
    with tarfile.open(path, mode) as tar:
        for part in sorted(folder.iterdir()):
            tar.add(part, prefix + part.name)
    return path


def write_zip(folder: Path, path: Path) -> Path:
    """`folder` itself as a zip, folders as entries of their own."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in sorted([folder, *folder.rglob("*")]):
            archive.write(part, part.relative_to(folder.parent))
    return path
