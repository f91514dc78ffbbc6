"""Training transforms: scale, pad, crop and flip an image and its label map together."""

from dataclasses import dataclass

import numpy as np
import torch

from ..image_processing_cagnet import CaGNetImageProcessor, resize_image, resize_label_map


@dataclass(frozen=True)
class Augmentation:
    """The random choices of one training example, so that they can be replayed."""

    scale: float
    row: float  # position of the crop in [0, 1): share of the free range
    column: float
    flip: bool


class TrainingTransform:
    """The paper's training transform, or its aspect-keeping variant.

    The image processor prepares image and labels (warp to 513 x 513 in the paper; the longer side for edge models);
    then both are scaled, padded centred with 0 and `ignore_index` to at least their prepared size and the crop,
    cropped, and flipped.
    """

    def __init__(
        self,
        processor: CaGNetImageProcessor,
        crop_size: int,
        *,
        scale_range: tuple[float, float] = (0.5, 1.5),
        flip_probability: float = 0.5,
        ignore_index: int = 255,
    ):
        self.processor = processor
        self.crop_size = crop_size
        self.scale_range = scale_range
        self.flip_probability = flip_probability
        self.ignore_index = ignore_index

    def draw(self, rng: np.random.Generator) -> Augmentation:
        return Augmentation(
            scale=rng.uniform(*self.scale_range),
            row=rng.random(),
            column=rng.random(),
            flip=bool(rng.random() < self.flip_probability),
        )

    def __call__(self, image, labels: np.ndarray, augmentation: Augmentation) -> dict[str, torch.Tensor]:
        """One training example.

        Args:
            image: PIL image or array `(H, W, 3)`, RGB.
            labels: `(H, W)` uint8, model order.

        Returns:
            `pixel_values` float32 `(3, crop, crop)`, `labels` int64 `(crop, crop)`, and `padding` bool `(crop, crop)`:
            what is no part of the image.
        """
        prepared = self.processor(image, segmentation_maps=labels, return_tensors=None)
        pixels, label_map = prepared["pixel_values"][0], prepared["labels"][0]
        prepared_size, scale = label_map.shape, augmentation.scale
        size = tuple(max(1, round(side * scale)) for side in label_map.shape)
        pixels, label_map = resize_image(pixels, size, scale), resize_label_map(label_map, size, scale)

        missing = [max(full - side, self.crop_size - side, 0) for full, side in zip(prepared_size, size, strict=True)]
        rims = [(total // 2, total - total // 2) for total in missing]
        padding = np.pad(np.zeros(size, dtype=bool), rims, constant_values=True)
        pixels = np.pad(pixels, [(0, 0), *rims])
        label_map = np.pad(label_map, rims, constant_values=self.ignore_index)

        crop = self.crop_size
        free = [side - crop for side in label_map.shape]
        top = int(augmentation.row * (free[0] + 1))
        left = int(augmentation.column * (free[1] + 1))
        example = {"pixel_values": pixels, "labels": label_map, "padding": padding}
        step = -1 if augmentation.flip else 1
        return {
            key: torch.from_numpy(np.ascontiguousarray(array[..., top : top + crop, left : left + crop][..., ::step]))
            for key, array in example.items()
        }
