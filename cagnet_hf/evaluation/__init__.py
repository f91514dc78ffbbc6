"""Evaluation: the metric, the loop that runs a model over a test set, and the protocols of the field."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

METRIC_PATH = str(Path(__file__).with_name("zero_shot_segmentation"))
ABSENT = "not in this dataset"


def class_iou(scores: Mapping[str, Any]) -> float | None:
    """The IoU of a class by its entry in `per_class`; None where no scored pixel has the class, whose IoU, 0 or
    undefined, says nothing of the class."""
    return scores["iou"] if scores["pixels"] else None


def shown_iou(scores: Mapping[str, Any], digits: int = 3) -> str:
    """`class_iou` for people."""
    iou = class_iou(scores)
    return ABSENT if iou is None else f"{iou:.{digits}f}"
