"""What new classes cost the old ones, and what they gain, on images with masks of both."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from accelerate import Accelerator

from .scoring import count, gathered_scores, score, scored_batches


def score_before(model, processor, dataset) -> dict:
    """The metrics of the model that has yet to learn new classes (see `score`), protocol `full`."""
    accelerator = Accelerator()
    with _on(accelerator.device, model):
        return score(model, processor, dataset, protocol="full", accelerator=accelerator)


def score_after(model, processor, dataset, before: dict) -> dict:
    """Scores of the old classes before and after, and of the new ones.

    An old class is scored on pixels of old classes in both, as before there were others: its IoU falls by what it
    loses to new classes. `all` are the usual metrics, over the pixels of all classes.

    Args:
        model: The model that has learnt classes since it was scored.
        before: From `score_before`, on the same dataset.
    """
    accelerator = Accelerator()
    with _on(accelerator.device, model):
        matrix, _ = count(model.config, processor, scored_batches(model, processor, dataset, accelerator=accelerator))
    everything = gathered_scores(matrix, accelerator)
    new = [i for i, name in model.config.id2label.items() if name not in before["per_class"]]
    matrix.counts[new] = 0
    old = matrix.scores()["per_class"]
    pairs = {name: (entry["iou"], old[name]["iou"]) for name, entry in before["per_class"].items()}
    means = mean_ious(pairs.values())
    names = [model.config.id2label[i] for i in new]
    return {
        "num_images": before["num_images"],
        "protocol": before["protocol"],
        "old_mIoU": dict(zip(("before", "after"), means, strict=True)),
        "new": {name: everything["per_class"][name] for name in names},
        "old": {name: {"before": first, "after": second} for name, (first, second) in pairs.items()},
        "all": {key: value for key, value in everything.items() if key != "per_class"},
    }


@contextmanager
def _on(device, model) -> Iterator[None]:
    """Keep a model on a device for a while."""
    home = model.device
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


def mean_ious(pairs: Iterable[tuple[float | None, float | None]]) -> tuple[float, float]:
    """Mean IoU before and after, both over the classes that have an IoU in both: others would shift one mean alone.

    Raises:
        ValueError: There is no such class.
    """
    defined = [pair for pair in pairs if None not in pair]
    if not defined:
        raise ValueError("no old class occurs in these images: score on images that show some")
    before, after = np.mean(defined, axis=0).tolist()
    return before, after
