"""Segment images with a trained model, and show what it saw.

from cagnet_hf.prediction import draw_overlay, load_model

model, processor = load_model("outputs/scenes/model")  # or a Hub id
draw_overlay(model, processor, Image.open("image.png")).save("overlay.png")
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image, ImageOps
from safetensors import SafetensorError
from transformers import AutoConfig

from .image_processing_cagnet import CaGNetImageProcessor, label_bands
from .modeling_cagnet import CaGNetForSemanticSegmentation
from .visualization import overlay_with_legend

INPUT_PIXELS = 1 << 24  # an image with more is shrunk on its way to the network, which looks at far fewer
PICTURE_PIXELS = 1 << 22  # an overlay has no more


def load_model(model_path: str):
    """(model in evaluation mode, image processor); this package's own code runs it.

    Args:
        model_path: A model folder, a Hub id, or `ID@REVISION` for a branch, tag or commit of it.

    Raises:
        ValueError: There is no such model, it is none of this package, or its weights do not fit; in one line.
    """
    check_model_folder(Path(model_path))
    name, _, revision = (model_path, "", "") if Path(model_path).is_dir() else model_path.partition("@")
    where = {"revision": revision or "main"}
    with _told_in_one_line(name, where["revision"]):
        config = AutoConfig.from_pretrained(name, **where)
        if config.model_type != "cagnet":
            raise ValueError(f"{model_path} is a {config.model_type!r} model, not a CaGNet one")
        try:
            model, report = CaGNetForSemanticSegmentation.from_pretrained(
                name, config=config, use_safetensors=True, output_loading_info=True, **where
            )
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"{model_path}: its weights do not fit its config.json or are damaged ({error})"
            ) from None
        if report["missing_keys"]:
            raise ValueError(f"{model_path}: its weights lack {', '.join(sorted(report['missing_keys'])[:3])}")
        processor = CaGNetImageProcessor.from_pretrained(name, **where)
    return model.eval().to(memory_format=torch.channels_last), processor


@contextmanager
def _told_in_one_line(name: str, revision: str) -> Iterator[None]:
    """What transformers raises about a model that it cannot get, as one line that says what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):  # private and gated ones, too
            reason = (
                "no such folder, and no such model on the Hub that you may see (private ones need `hf auth login`)"
            )
        elif isinstance(error.__cause__, RevisionNotFoundError):
            reason = f"the Hub has no revision {revision!r} of it"
        elif isinstance(error.__cause__, LocalEntryNotFoundError):
            reason = "no such folder, the Hub cannot be reached, and no copy is in the cache"
        elif isinstance(error.__cause__, HFValidationError):
            reason = "no such folder, and no id for the Hub (owner/name)"
        else:
            raise
        raise ValueError(f"{name}: {reason}") from None


def check_model_folder(path: Path) -> None:
    """Refuse what is meant as a folder and holds no model; a Hub id is `name` or `owner/name`."""
    if path.is_dir() and not (path / "config.json").is_file():
        inside = path / "model"
        hint = f"; did you mean {inside}?" if (inside / "config.json").is_file() else ""
        raise ValueError(f"{path}: no model in this folder (config.json){hint}")
    if not path.is_dir() and (path.is_absolute() or len(path.parts) > 2):
        raise ValueError(f"{path}: no such model folder")


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
        label_map: `(H, W)` uint8 in model order, at the image's own size (turned as its EXIF data say).
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


def draw_overlay(model, processor, image: Image.Image, *, gamma: float | None = None) -> Image.Image:
    """Segment one image and draw it: the classes over the image, above a legend of those that occur.

    Args:
        model: In evaluation mode, from `load_model` or `AutoModelForSemanticSegmentation`.
        processor: Its image processor.
        image: Of any size and mode; an overlay has at most `PICTURE_PIXELS`.
        gamma: See `segment`.
    """
    (prediction,) = segment(model, processor, [image], gamma=gamma)
    return prediction.overlay()


def segment(
    model, processor, images: Iterable[Image.Image], *, gamma: float | None = None, batch_size: int = 8
) -> Iterator[Prediction]:
    """Predictions of images, in order; images are taken `batch_size` at a time, and not kept.

    Args:
        model: In evaluation mode, on the device to use.
        images: Of any sizes; those that the processor brings to one size share a batch.
        gamma: Calibration: is subtracted from the seen classes' probabilities; the model's own when None.

    Raises:
        ValueError: `gamma` is not between -1 and 1.
    """
    if gamma is not None and not -1 <= gamma <= 1:
        raise ValueError(f"gamma {gamma}: it is subtracted from probabilities, so choose one between 0 and 1")
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
    image = ImageOps.exif_transpose(image)
    image = image if image.mode == "RGB" else image.convert("RGB")
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
    outputs = model(pixel_values)
    if gamma is None:
        return outputs.logits, None if outputs.calibration is None else outputs.calibration[0]
    offset = torch.zeros(model.config.num_labels, device=model.device)
    offset[list(model.config.seen_ids)] = gamma
    return outputs.logits, offset


@torch.inference_mode()
def _prediction(logits: torch.Tensor, offset, size: tuple[int, int], picture: Image.Image, config) -> Prediction:
    label_map, scores = np.empty(size, np.uint8), np.empty(size, np.float32)
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
