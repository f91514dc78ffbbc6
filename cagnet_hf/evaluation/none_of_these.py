"""Pixels that show none of the classes: what a model scores where background counts as a class, and how probable the
label of a pixel must be, so that the pixel is not left without one (`min_score`).

A pixel of background is one that was looked at and shows no class; a pixel without a label (255) says nothing.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from transformers.utils import ModelOutput

from ..data.benchmarks import Benchmark
from ..data.label_space import UNLABELLED, LabelSpace
from ..model.image_processing_cagnet import label_bands
from .scoring import scored_batches
from .zero_shot_segmentation.confusion_matrix import ConfusionMatrix

MIN_SCORES = tuple(i / 100 for i in range(100))


class PixelCounts:
    """Counts of pixels by how probable their label is, by truth and by label, in one pass for several `min_score`.

    Args:
        config: The model's configuration.
        background: The stored id of background.
        name: What the benchmark calls background.
        min_scores: In rising order.

    Attributes:
        labels: What masks mean: background is a class, the last one where the model does not know the class.
        counts: `(T + 1, C, N)` int64: the number of `min_scores` that the probability reaches, truth, label.
    """

    def __init__(self, config, background: int, name: str, min_scores: Sequence[float]):
        self.config, self.min_scores = config, list(min_scores)
        # 255 is no class of masks, whatever the model calls pixels without a label.
        self.labels, self.names = replace(LabelSpace.of(config), ignore_index=UNLABELLED), config.id2label
        if background not in config.dataset_ids:
            self.labels = replace(self.labels, class_ids=(*config.dataset_ids, background))
            self.names = config.id2label | {config.num_labels: name}
        self.background = self.labels.class_ids.index(background)
        self.counts = np.zeros((len(self.min_scores) + 1, len(self.labels.class_ids), config.num_labels), np.int64)

    def add(self, outputs: ModelOutput, references: Iterable[np.ndarray]) -> None:
        """Count images: the outputs of the model, and label maps of `labels`."""
        thresholds = torch.tensor(self.min_scores, device=outputs.logits.device)
        for position, truth in enumerate(references):
            offset = None if outputs.calibration is None else outputs.calibration[position]
            for rows, labels, scores in label_bands(outputs.logits[position], truth.shape, offset, with_scores=True):
                reached = torch.bucketize(scores, thresholds, right=True)
                scored = truth[rows] != UNLABELLED
                cells = reached.cpu().numpy()[scored], truth[rows][scored], labels.cpu().numpy()[scored]
                cells = np.ravel_multi_index(cells, self.counts.shape)
                self.counts += np.bincount(cells, minlength=self.counts.size).reshape(self.counts.shape)

    def gather(self, accelerator: Accelerator) -> None:
        """Make the counts those of all processes."""
        if accelerator.num_processes > 1:
            counts = torch.from_numpy(self.counts).to(accelerator.device)
            self.counts = accelerator.reduce(counts, "sum").cpu().numpy()

    def over_classes(self) -> ConfusionMatrix:
        """The pixels of the model's own classes, each given to a class."""
        matrix = ConfusionMatrix.of(self.config)
        matrix.merge(self.counts.sum(0)[: self.config.num_labels])
        return matrix

    def with_background(self) -> dict[float, dict]:
        """By `min_score`, the scores where background counts as a class: a seen one, which a pixel without a class is
        given to.

        The keys are those of `ConfusionMatrix.scores`, but for `per_class`, with `background_IoU`, and
        `background_unlabelled`: the share of the pixels of background that are given to no class, or to background
        where the model knows background; None where there is no such pixel.
        """
        curve, seen = {}, sorted({*self.config.seen_ids, self.background})
        for position, min_score in enumerate(self.min_scores):
            rejected, labelled = self.counts[: position + 1].sum(0), self.counts[position + 1 :].sum(0)
            matrix = ConfusionMatrix(len(self.names), seen, self.config.unseen_ids, self.names, ignore_index=-1)
            matrix.counts[:, : self.config.num_labels] = labelled
            matrix.counts[:, self.background] += rejected.sum(1)
            scores = matrix.scores()
            background = scores.pop("per_class")[matrix.label_names[self.background]]
            curve[min_score] = scores | {
                "background_IoU": background["iou"],
                "background_unlabelled": background["recall"],
            }
        return curve


def score_with_background(
    model, processor, dataset, benchmark: Benchmark, *, accelerator: Accelerator, **options
) -> dict:
    """The scores of `scoring.score`, and as `with_background` those where background counts as a class, with the
    model's `min_score`.

    Args:
        benchmark: Says which stored id is background.
        options: See `scored_batches`.
    """
    background = benchmark.background_id
    pixels = PixelCounts(model.config, background, benchmark.label_names[background], [float(model.config.min_score)])
    num_images = _count(pixels, model, processor, dataset, accelerator=accelerator, **options)
    ((min_score, scores),) = pixels.with_background().items()
    return pixels.over_classes().scores() | {
        "protocol": options.get("protocol", "full"),
        "num_images": num_images,
        "calibration": model.config.calibration,
        "with_background": {"min_score": min_score, **scores},
    }


def curve_with_background(
    model, processor, dataset, benchmark: Benchmark, *, min_scores: Sequence[float], **options
) -> dict[float, dict]:
    """The scores where background counts as a class by every `min_score`, in one pass; see `PixelCounts`.

    Args:
        benchmark: Says which stored id is background.
        options: See `scored_batches`.
    """
    background = benchmark.background_id
    pixels = PixelCounts(model.config, background, benchmark.label_names[background], min_scores)
    _count(pixels, model, processor, dataset, **options)
    return pixels.with_background()


def min_score_curve(
    model, processor, dataset, benchmark: Benchmark, *, min_scores: Sequence[float] = MIN_SCORES, **options
) -> dict[float, dict]:
    """The scores where background counts as a class by every `min_score`, in one pass, by protocol `full`.

    No pixel of an unseen class of the benchmark is counted. So hIoU says something of a model that takes some seen
    classes for unseen ones (`split=tuning`), and is 0 for every other model, of which S-mIoU says something.

    Raises:
        ValueError: The benchmark has no class called background, or no image shows background.
    """
    background = benchmark.background_id
    if background is None:
        raise ValueError(
            f"{benchmark.name} has no class called background: min_score is chosen on images whose masks tell pixels "
            "of no class from pixels without a label"
        )
    pixels = PixelCounts(model.config, background, benchmark.label_names[background], min_scores)
    accelerator = Accelerator()
    _count(pixels, model.to(accelerator.device), processor, dataset, accelerator=accelerator, **options)
    for label, stored_id in enumerate(model.config.dataset_ids):
        if stored_id in benchmark.unseen_ids:
            pixels.counts[:, label] = 0
    if not pixels.counts[:, pixels.background].any():
        raise ValueError("no image shows background, so there is nothing to choose min_score by")
    return pixels.with_background()


def best_min_score(curve: dict[float, dict]) -> float:
    """The `min_score` of the highest hIoU, and where hIoU is 0 everywhere, of the highest S-mIoU; of equals the
    smallest."""
    return max(sorted(curve), key=lambda key: (curve[key]["hIoU"], curve[key]["S-mIoU"] or 0.0))


def _count(pixels: PixelCounts, model, processor, dataset, *, accelerator: Accelerator, **options) -> int:
    """Count the pixels of a dataset, over all processes; the number of images."""
    batches = scored_batches(model, processor, dataset, accelerator=accelerator, labels=pixels.labels, **options)
    num_images = 0
    with closing(batches):  # whatever happens, the model gets its mode back
        for outputs, references in batches:
            pixels.add(outputs, references)
            num_images += len(references)
    pixels.gather(accelerator)
    return accelerator.reduce(torch.tensor(num_images, device=accelerator.device), "sum").item()
