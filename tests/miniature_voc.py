"""A tiny dataset laid out as Pascal VOC is distributed."""

from pathlib import Path

import numpy as np
from PIL import Image


class MiniatureVoc:
    """A folder laid out as the official one, with noise images and masks of one class each."""

    def __init__(self, folder: Path, train=("a", "b", "c"), test=("d",)):
        self.folder = folder
        self.root = folder / "VOCdevkit" / "VOC2012"
        for part in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
            (self.root / part).mkdir(parents=True)
        self.write_list("train_aug.txt", train)
        self.write_list("val.txt", test)
        for number, image_id in enumerate((*train, *test), start=1):
            self.write_image(image_id, (20, 10), seed=number)
            self.write_mask(image_id, np.full((10, 20), number, np.uint8))

    def write_list(self, name, image_ids):
        (self.root / "ImageSets" / "Segmentation" / name).write_text("\n".join(image_ids) + "\n")

    def image(self, image_id) -> Path:
        return self.root / "JPEGImages" / f"{image_id}.jpg"

    def mask(self, image_id) -> Path:
        return self.root / "SegmentationClassAug" / f"{image_id}.png"

    def write_image(self, image_id, size, seed=0, **options):
        noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(self.image(image_id), "JPEG", **options)

    def write_mask(self, image_id, stored_ids, palette=False):
        mask = Image.fromarray(stored_ids)
        if palette:
            mask.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
        mask.save(self.mask(image_id), "PNG")

    def truncate(self, image_id):
        data = self.image(image_id).read_bytes()
        self.image(image_id).write_bytes(data[: len(data) // 2])
