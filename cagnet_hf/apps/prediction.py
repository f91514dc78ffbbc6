"""Segment images with a trained model, and show what it saw.

from cagnet_hf import load_model, segment

model, processor = load_model("outputs/scenes/model")  # or a Hub id
for prediction in segment(model, processor, [Image.open("image.png")]):
    prediction.overlay().save("overlay.png")
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image

from ..evaluation.calibration import check_gamma
from ..evaluation.scoring import check_logits
from ..model.decoding_cagnet import rgb_image
from ..model.image_processing_cagnet import label_bands
from .pictures import overlay_with_legend

INPUT_PIXELS = 1 << 24  # an image with more is shrunk on its way to the network, which looks at far fewer
PICTURE_PIXELS = 1 << 22  # an overlay has no more


@dataclass(frozen=True)
class PredictedClass:
    """A class that occurs in a prediction.

    Attributes:
        name: Its name.
        dataset_id: Its id in stored masks.
        seen: Whether training showed its labels.
        area: Its share of the image's pixels.
        score: Mean softmax probability over its pixels.
    """

    name: str
    dataset_id: int
    seen: bool
    area: float
    score: float


@dataclass(frozen=True)
class Prediction:
    """What a model sees in one image.

    Attributes:
        label_map: `(H, W)` uint8 (int32 beyond 256 classes) in model order, at the image's own size (turned as its
            EXIF data say).
        scores: `(H, W)` float32, the softmax probability of each pixel's label.
        classes: The classes that occur, the largest first.
        picture: The image, of no more than `PICTURE_PIXELS`.
        config: The model's configuration.
    """

    label_map: np.ndarray
    scores: np.ndarray
    classes: tuple[PredictedClass, ...]
    picture: Image.Image
    config: object

    def overlay(self) -> Image.Image:
        """The classes over the picture, above a legend; unseen classes are hatched and listed apart."""
        names = [self.config.id2label[i] for i in range(self.config.num_labels)]
        labels = Image.fromarray(self.label_map).resize(self.picture.size, Image.Resampling.NEAREST)
        return overlay_with_legend(
            self.picture, np.asarray(labels), names, self.config.seen_ids, self.config.unseen_ids
        )

    def confidence_map(self) -> Image.Image:
        """The scores as a grey picture: 0 is black, 1 is white."""
        grey = self.scores * np.float32(255)
        return Image.fromarray(np.rint(grey, out=grey).astype(np.uint8))


def segment(
    model, processor, images: Iterable[Image.Image], *, gamma: float | None = None, batch_size: int = 8
) -> Iterator[Prediction]:
    """Predictions of images, in order; images are taken `batch_size` at a time, and not kept.

    Args:
        model: In evaluation mode, on the device to use.
        images: Of any sizes; those that the processor brings to one size share a batch.
        gamma: Calibration: is subtracted from the seen classes' probabilities; the model's own when None.

    Raises:
        ValueError: `gamma` is not between -1 and 1, or the model's scores of an image are no numbers.
    """
    check_gamma(gamma)
    images = iter(images)
    while batch := [_prepare(processor, image) for image in islice(images, batch_size)]:
        groups = defaultdict(list)
        for position, (pixel_values, _, _) in enumerate(batch):
            groups[pixel_values.shape].append(position)
        scored = {}
        for positions in groups.values():
            pixel_values = torch.stack([batch[position][0] for position in positions])
            logits, offset = _scored(model, pixel_values.to(model.device, model.dtype), gamma)
            scored |= {position: (one, offset) for position, one in zip(positions, logits, strict=True)}
        for position, (_, size, picture) in enumerate(batch):
            yield _prediction(*scored[position], size, picture, model.config)


def _prepare(processor, image: Image.Image) -> tuple[torch.Tensor, tuple[int, int], Image.Image]:
    """(pixel values `(3, H', W')`, height and width, the image for an overlay)."""
    image = rgb_image(image)
    size = (image.height, image.width)
    image = _at_most(image, INPUT_PIXELS)
    pixel_values = torch.from_numpy(np.asarray(processor(images=image, return_tensors=None)["pixel_values"][0]))
    return pixel_values, size, _at_most(image, PICTURE_PIXELS)


def _at_most(image: Image.Image, pixels: int) -> Image.Image:
    """The image, or means of whole blocks of its pixels."""
    factor = 1
    while -(-image.width // factor) * -(-image.height // factor) > pixels:
        factor += 1
    return image if factor == 1 else image.reduce(factor)


@torch.inference_mode()
def _scored(model, pixel_values: torch.Tensor, gamma: float | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits `(B, N, h, w)` and what is subtracted from the probabilities, `(N,)` or None."""
    outputs = model(pixel_values, return_dict=True)
    check_logits(outputs.logits)
    if gamma is None:
        return outputs.logits, None if outputs.calibration is None else outputs.calibration[0]
    offset = torch.zeros(model.config.num_labels, device=model.device)
    offset[list(model.config.seen_ids)] = gamma
    return outputs.logits, offset


@torch.inference_mode()
def _prediction(logits: torch.Tensor, offset, size: tuple[int, int], picture: Image.Image, config) -> Prediction:
    label_map = np.empty(size, np.uint8 if config.num_labels <= 256 else np.int32)
    scores = np.empty(size, np.float32)
    pixels, totals = torch.zeros(2, config.num_labels, dtype=torch.float64, device=logits.device)
    for rows, labels, band in label_bands(logits, size, offset, with_scores=True):
        label_map[rows], scores[rows] = labels.cpu().numpy(), band.cpu().numpy()
        pixels += labels.flatten().bincount(minlength=len(pixels))
        totals += labels.flatten().bincount(band.flatten().double(), minlength=len(pixels))
    found = [
        PredictedClass(config.id2label[i], config.dataset_ids[i], i in config.seen_ids, count / label_map.size, total)
        for i, (count, total) in enumerate(zip(pixels.tolist(), (totals / pixels).tolist(), strict=True))
        if count
    ]
    found.sort(key=lambda one: -one.area)
    return Prediction(label_map, scores, tuple(found), picture, config)
