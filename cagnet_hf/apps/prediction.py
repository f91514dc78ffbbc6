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

from ..data.label_space import UNLABELLED
from ..data.names import is_background
from ..evaluation.calibration import check_gamma
from ..evaluation.scoring import check_logits
from ..model.configuration_cagnet import STORED_IDS, unlabelled_id
from ..model.decoding_cagnet import rgb_image
from ..model.image_processing_cagnet import check_min_score, label_bands
from .pictures import overlay_with_legend

INPUT_PIXELS = 1 << 24  # an image with more is shrunk on its way to the network, which looks at far fewer
PICTURE_PIXELS = 1 << 22  # an overlay has no more


@dataclass(frozen=True)
class PredictedClass:
    """A class that occurs in a prediction, or the pixels that were given to none.

    Attributes:
        name: Its name; "None of these" for pixels of no class.
        dataset_id: Its id in stored masks; 255 for pixels of no class.
        seen: Whether training showed its labels; None for pixels of no class.
        area: Its share of the image's pixels.
        score: Mean softmax probability over its pixels; for pixels of no class that of the likeliest class.
    """

    name: str
    dataset_id: int
    seen: bool | None
    area: float
    score: float


@dataclass(frozen=True)
class Prediction:
    """What a model sees in one image.

    Attributes:
        label_map: `(H, W)` uint8 (int32 beyond 255 classes) in model order, at the image's own size (turned as its
            EXIF data say). A pixel of no class is 255 (see `unlabelled_id`).
        scores: `(H, W)` float32, the softmax probability of each pixel's label; of a pixel of no class that of the
            likeliest class.
        classes: The classes that occur, the largest first, and among them the pixels of no class.
        picture: The image, of no more than `PICTURE_PIXELS`.
        config: The model's configuration.
    """

    label_map: np.ndarray
    scores: np.ndarray
    classes: tuple[PredictedClass, ...]
    picture: Image.Image
    config: object

    def overlay(self) -> Image.Image:
        """The classes over the picture, above a legend; unseen classes are hatched and listed apart. Pixels of no
        class, and of a class called background, have no colour."""
        names = [self.config.id2label[i] for i in range(self.config.num_labels)]
        labels = self.painted(self.picture.size)
        return overlay_with_legend(self.picture, labels, names, self.config.seen_ids, self.config.unseen_ids)

    def painted(self, size: tuple[int, int]) -> np.ndarray:
        """The label map `(height, width)` at a size (width, height), as pictures show it: without background."""
        labels = np.asarray(Image.fromarray(self.label_map).resize(size, Image.Resampling.NEAREST))
        background = [i for i, name in self.config.id2label.items() if is_background(name)]
        return np.where(np.isin(labels, background), UNLABELLED, labels)

    def confidence_map(self) -> Image.Image:
        """The scores as a grey picture: 0 is black, 1 is white."""
        grey = self.scores * np.float32(255)
        return Image.fromarray(np.rint(grey, out=grey).astype(np.uint8))


def segment(
    model,
    processor,
    images: Iterable[Image.Image],
    *,
    gamma: float | None = None,
    min_score: float | None = None,
    batch_size: int = 8,
) -> Iterator[Prediction]:
    """Predictions of images, in order; images are taken `batch_size` at a time, and not kept.

    Args:
        model: In evaluation mode, on the device to use.
        images: Of any sizes; those that the processor brings to one size share a batch.
        gamma: Calibration: is subtracted from the seen classes' probabilities; the model's own when None.
        min_score: A pixel whose label has a lower softmax probability than this is given to no class; the model's own
            when None.

    Raises:
        ValueError: `gamma` is not between -1 and 1, `min_score` is no probability, or the model's scores of an image
            are no numbers.
    """
    check_gamma(gamma)
    min_score = model.config.min_score if min_score is None else min_score
    check_min_score(min_score)
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
            yield _prediction(*scored[position], min_score, size, picture, model.config)


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
def _prediction(
    logits: torch.Tensor, offset, min_score: float, size: tuple[int, int], picture: Image.Image, config
) -> Prediction:
    unlabelled = unlabelled_id(config.num_labels)
    label_map = np.empty(size, np.uint8 if unlabelled < 256 else np.int32)
    scores = np.empty(size, np.float32)
    pixels, totals = torch.zeros(2, unlabelled + 1, dtype=torch.float64, device=logits.device)
    for rows, labels, band in label_bands(logits, size, offset, min_score=min_score, with_scores=True):
        label_map[rows], scores[rows] = labels.cpu().numpy(), band.cpu().numpy()
        pixels += labels.flatten().bincount(minlength=len(pixels))
        # Not a bincount with weights, which PyTorch refuses on a GPU where algorithms must be deterministic.
        totals.index_add_(0, labels.flatten().long(), band.flatten().double())
    found = []
    for i, (count, score) in enumerate(zip(pixels.tolist(), (totals / pixels).tolist(), strict=True)):
        if count:
            about = (STORED_IDS, None) if i == unlabelled else (config.dataset_ids[i], i in config.seen_ids)
            found.append(PredictedClass(config.id2label[i], *about, count / label_map.size, score))
    found.sort(key=lambda one: -one.area)
    return Prediction(label_map, scores, tuple(found), picture, config)
