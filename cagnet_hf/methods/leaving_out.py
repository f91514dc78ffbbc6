"""Numbers chosen without a test image: each seen class in turn plays an unseen one.

A class that is left out has its pixels among the unlabelled ones, and its mean follows from its name. The closed form
is computed anew without the class, from the statistics of the pass and a sample of cells, and every setting of a grid
is scored on the sample. Unseen classes take part with their names alone, as they will in use.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby, product
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..model.gaussian_cagnet import of_all_processes
from ..model.maps_cagnet import with_image_prior

CHOSEN = "chosen.json"  # what was chosen, in the folder of a run whose stage says `choose`
SCORES = ("S-mIoU", "U-mIoU", "hIoU")
MOST_BATCHES = 64  # of images whose cells are kept
MOST_LEFT_OUT = 32  # classes, where there are more of them


class Setting(NamedTuple):
    """What decides between seen and unseen classes once the classifier is known.

    Attributes:
        unseen_rate: The prior odds of an unseen class are 1 + this number.
        image_prior, calibration: See `CaGNetConfig`.
    """

    unseen_rate: float
    image_prior: float
    calibration: float


GRID = [
    Setting(*values)
    for values in product((0.0, 1.0, 3.0, 9.0), (0.0, 0.5, 1.0, 2.0, 4.0), (round(0.2 * i, 1) for i in range(-4, 5)))
]


class CellSample:
    """Features and labels of every second cell in both directions, of at most `MOST_BATCHES` batches of images."""

    def __init__(self):
        self.batches: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._passed, self._every = 0, 1

    def add(self, features, labels) -> None:
        """Take `(B, D, h, w)` with labels `(B, h, w)`, N where there is none. Of many, every so many stay."""
        if self._passed % self._every == 0:
            self.batches.append((features[:, :, ::2, ::2].half(), labels[:, ::2, ::2]))
        self._passed += 1
        if len(self.batches) > MOST_BATCHES:
            self.batches, self._every = self.batches[::2], 2 * self._every

    def maps(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(features, labels) of all images of one size, size by size."""
        by_size = defaultdict(list)
        for features, labels in self.batches:
            by_size[labels.shape[1:]].append((features, labels))
        return [tuple(map(torch.cat, zip(*parts, strict=True))) for parts in by_size.values()]

    def of_class(self, label: int) -> torch.Tensor:
        """The features `(P, D)` of the cells of a class."""
        return torch.cat([features.movedim(1, -1)[labels == label] for features, labels in self.batches]).float()


def choose_setting(
    cells: CellSample, generator, head, embeddings, unseen_ids: Sequence[int], default: Setting, **fit
) -> tuple[Setting, dict[Setting, dict[str, float]]]:
    """The setting of the highest hIoU with classes left out.

    The default stays where no setting is better by more than the standard error of the difference (jackknife over the
    classes left out): few classes tell little.

    Args:
        cells: Cells of this process's images.
        generator: `PrototypeGenerator` after `share` and before `fit`.
        head: The head of the image classifier.
        embeddings: `(N, E)` of all classes.
        unseen_ids: The truly unseen classes.
        default: The setting to compare with.
        fit: Options of `PrototypeGenerator.fit`.

    Returns:
        The setting; and of every setting `S-mIoU` of the classes that stayed, `U-mIoU` of those left out, and `hIoU`.
    """
    shown = sum(
        torch.bincount(labels[labels < len(embeddings)], minlength=len(embeddings)) for _, labels in cells.batches
    )
    classes = sum(shown for (shown,) in of_all_processes(shown)).nonzero()[:, 0].tolist()
    classes = classes[:: -(-len(classes) // MOST_LEFT_OUT)] if len(classes) > 2 else []  # s needs two classes
    settings = sorted({default, *GRID})
    ious, maps = [], cells.maps()
    for label in classes:
        part = generator.without(label)
        features = cells.of_class(label)
        posteriors = features.new_zeros(0, head.num_classes)
        if len(features):  # this process may have none of them
            posteriors = head(features.t()[None, :, None])[0, :, 0].t().softmax(dim=1)
        part.mean.observe_share(features, posteriors, generator.class_counts[label])
        part.fit(embeddings, **fit)
        unseen = torch.zeros(len(embeddings), dtype=torch.bool, device=embeddings.device)
        unseen[[*unseen_ids, label]] = True
        rule = part.bayes_rule(embeddings, torch.zeros(len(embeddings), device=embeddings.device))
        ious.append(class_ious(maps, *(tensor.float() for tensor in rule), unseen, settings))
    if not ious:
        return default, {}
    ious = torch.stack(ious)  # (classes left out, settings, N)
    stayed = ious.clone()
    for fold, label in enumerate(classes):
        stayed[fold, :, label] = torch.nan
    own = torch.stack([ious[fold, :, label] for fold, label in enumerate(classes)]).nan_to_num()
    others = stayed.nanmean(-1).nan_to_num()
    every = _harmonic(others.mean(0), own.mean(0))
    better = every - every[settings.index(default)]
    best = int(better.argmax())
    n = len(classes)
    without_one = _harmonic(*((part.sum(0) - part) / (n - 1) for part in (others, own)))
    moved = without_one[:, best] - without_one[:, settings.index(default)]
    error = ((n - 1) / n * (moved - moved.mean()).square().sum()).sqrt()
    rows = torch.stack([others.mean(0), own.mean(0), every], dim=1).tolist()
    scores = {setting: dict(zip(SCORES, row, strict=True)) for setting, row in zip(settings, rows, strict=True)}
    return settings[best] if better[best] > error else default, scores


def _harmonic(seen, unseen):
    return 2 * seen * unseen / (seen + unseen).clamp_min(1e-12)


def class_ious(maps: Sequence[tuple], weights, biases, unseen, settings: Sequence[Setting]) -> torch.Tensor:
    """The IoU of every class `(settings, N)` under a classifier, over the cells of all processes.

    Args:
        maps: (features `(B, D, h, w)`, labels `(B, h, w)`) of images of one size.
    """
    size, counts = len(biases), []
    logits = [F.conv2d(features.float(), weights[:, :, None, None], biases) for features, _ in maps]
    labelled = [labels < size for _, labels in maps]
    truth = torch.cat([labels[mask] for (_, labels), mask in zip(maps, labelled, strict=True)])
    for (rate, prior), group in groupby(settings, key=lambda setting: setting[:2]):
        odds = (unseen * torch.tensor(1 + rate).log())[:, None, None]
        moved = [with_image_prior(own + odds, prior).movedim(1, -1) for own in logits]
        probabilities = torch.cat([own[mask] for own, mask in zip(moved, labelled, strict=True)]).softmax(dim=1)
        seen_best, seen_ids = probabilities.masked_fill(unseen, -1).max(dim=1)
        unseen_best, unseen_ids = probabilities.masked_fill(~unseen, -1).max(dim=1)
        for setting in group:
            prediction = torch.where(unseen_best > seen_best - setting.calibration, unseen_ids, seen_ids)
            right = prediction[prediction == truth]
            counts.append(torch.stack([torch.bincount(ids, minlength=size) for ids in (right, truth, prediction)]))
    correct, true, predicted = sum(counts for (counts,) in of_all_processes(torch.stack(counts))).unbind(1)
    return correct.double() / (true + predicted - correct)
