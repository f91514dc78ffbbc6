"""Training transforms: scale, pad, crop and flip an image and its label map together."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..model.decoding_cagnet import image_tensor
from ..model.image_processing_cagnet import CaGNetImageProcessor
from ..model.maps_cagnet import resize_image, resize_labels


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

    def __call__(self, image, labels, augmentation: Augmentation) -> dict[str, torch.Tensor]:
        """One training example, made on the device of its image.

        Args:
            image: PIL image or array `(H, W, 3)`, or a tensor `(3, H, W)`; RGB.
            labels: `(H, W)`, model order.

        Returns:
            `pixel_values` float32 `(3, crop, crop)`, `labels` int64 `(crop, crop)`, and `padding` bool `(crop, crop)`:
            what is no part of the image.

        Raises:
            ValueError: The labels differ in size from the image.
        """
        image = image_tensor(image)
        labels = labels if isinstance(labels, torch.Tensor) else torch.from_numpy(np.array(labels))
        if labels.shape != image.shape[1:]:
            raise ValueError(f"labels of size {tuple(labels.shape)} for an image of size {tuple(image.shape[1:])}")
        pixels = self.processor.prepare(image)
        prepared_size, crop, scale = pixels.shape[1:], self.crop_size, augmentation.scale
        size = tuple(max(1, round(side * scale)) for side in prepared_size)

        # The crop of the padded image, without padding what lies outside of the crop, or finding what lies below or to
        # the right of it.
        padded = [max(side, full, crop) for side, full in zip(size, prepared_size, strict=True)]
        shares = (augmentation.row, augmentation.column)
        starts = [int(share * (side - crop + 1)) for share, side in zip(shares, padded, strict=True)]
        rims = [(whole - side) // 2 for whole, side in zip(padded, size, strict=True)]
        window, pads = [], []
        for start, rim, side in zip(starts, rims, size, strict=True):
            first = min(max(start, rim), start + crop)
            last = max(first, min(start + crop, rim + side))
            window.append(slice(first - rim, last - rim))
            pads = [first - start, start + crop - last, *pads]  # the last axis comes first
        until = tuple(min(max(1, part.stop), side) for part, side in zip(window, size, strict=True))
        pixels = resize_image(pixels, size, scale, until)[(..., *window)]
        labels = resize_labels(resize_labels(labels, prepared_size), size, scale, until)[tuple(window)].long()
        example = {
            "pixel_values": F.pad(pixels, pads),
            "labels": F.pad(labels, pads, value=self.ignore_index),
            "padding": F.pad(torch.zeros_like(labels, dtype=torch.bool), pads, value=True),
        }
        return {key: values.flip(-1) for key, values in example.items()} if augmentation.flip else example
