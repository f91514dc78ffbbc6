"""What new classes cost the old ones, and what they gain, on images with masks of both."""

import numpy as np
from accelerate import Accelerator

from .scoring import count, score


def score_before(model, processor, dataset) -> dict:
    """The metrics of the model that has yet to learn new classes (see `score`), protocol `full`."""
    return score(model, processor, dataset, protocol="full")


def score_after(model, processor, dataset, before: dict) -> dict:
    """Scores of the old classes before and after, and of the new ones.

    An old class is scored on pixels of old classes in both, as before there were others: its IoU falls by what it
    loses to new classes. `all` are the usual metrics, over the pixels of all classes.

    Args:
        model: The model that has learnt classes since it was scored.
        before: From `score_before`, on the same dataset.
    """
    metric, _ = count(model, processor, dataset, protocol="full", batch_size=8, accelerator=Accelerator())
    matrix = metric.confusion_matrix
    everything = metric.compute()  # which starts afresh
    new = [i for i, name in model.config.id2label.items() if name not in before["per_class"]]
    matrix[new] = 0
    metric.merge(matrix)
    old = metric.compute()["per_class"]
    pairs = {name: (entry["iou"], old[name]["iou"]) for name, entry in before["per_class"].items()}
    means = [float(np.mean([iou for iou in ious if iou is not None])) for ious in zip(*pairs.values(), strict=True)]
    names = [model.config.id2label[i] for i in new]
    return {
        "num_images": before["num_images"],
        "protocol": before["protocol"],
        "old_mIoU": {"before": means[0], "after": means[1]},
        "new": {name: everything["per_class"][name] for name in names},
        "old": {name: {"before": first, "after": second} for name, (first, second) in pairs.items()},
        "all": {key: value for key, value in everything.items() if key != "per_class"},
    }
