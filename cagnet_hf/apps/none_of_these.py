"""Choosing how probable the class of a pixel must be, so that the pixel is not given to none."""

import json
from logging import getLogger
from pathlib import Path

from ..data.sources import open_with_classes
from ..evaluation.none_of_these import best_min_score, min_score_curve
from ..evaluation.scoring import check_classes
from ..files import write_text_whole
from ..weights.folders import load_model

logger = getLogger(__name__)


def choose_min_score(model: str, dataset: str, *, split: str = "train", **columns) -> tuple[float, dict[float, dict]]:
    """The best `min_score` of a model where background counts as a class, and the scores of every one of a grid.

    Pixels of the dataset's unseen classes are never used, so that images of training may serve. hIoU decides for a
    model that was trained with `split=tuning`, S-mIoU for every other one (see `min_score_curve`).

    Args:
        model: A model folder, a Hub id, or `ID@REVISION`.
        dataset: Images whose masks show background.
        split: The split of the dataset.
        columns: How the dataset is read; see `evaluate`.

    Raises:
        ValueError: See `evaluate`; or nothing is known of background.
    """
    rows, classes = open_with_classes(dataset, split, **columns)
    if classes is None:
        raise ValueError(f"{dataset} does not say whose classes its masks show: give benchmark=NAME or FILE.yaml")
    network, processor = load_model(model)
    check_classes(network.config, classes, dataset)
    curve = min_score_curve(network, processor, rows, classes)
    return best_min_score(curve), curve


def apply_min_score(folder: Path, min_score: float) -> None:
    """Write a `min_score` into the `config.json` of a model folder, for everything that segments with the model."""
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    write_text_whole(path, json.dumps(fields | {"min_score": min_score}, indent=2) + "\n")
    logger.info("Wrote min_score %s to %s", min_score, path)
