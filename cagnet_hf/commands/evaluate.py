"""`cagnet-hf evaluate`."""

import json
from dataclasses import asdict
from logging import getLogger
from pathlib import Path
from typing import Literal

from .options import DatasetOptions

logger = getLogger(__name__)


def evaluate(
    data: DatasetOptions,
    *,
    model: str,
    protocol: Literal["full", "paper"] = "full",
    gamma: float | None = None,
    min_score: float | None = None,
    batch_size: int = 8,
    output: Path | None = None,
) -> None:
    """Score a model on the seen and unseen classes of a dataset.

    Args:
        model: A model folder, a Hub id, or ID@REVISION.
        protocol: full scores every image at its own size; paper warps images to a square and scores at the resolution
            of the feature map.
        gamma: The calibration, a number from -1 to 1 that is subtracted from the seen classes' probabilities.
            Negative: fewer pixels go to unseen classes (default: the model's own).
        min_score: For the scores with background, which are given where the dataset's class table has a class called
            background: a pixel whose class is less probable than this number from 0 to 1 is given to no class, which
            counts as background (default: the model's own).
        batch_size: Images of equal size per batch.
        output: The JSON file to write.

    Examples:
        cagnet-hf evaluate --model outputs/scenes/model --dataset scenes:0 --output metrics.json
    """
    from accelerate import PartialState

    from ..apps import evaluation
    from ..files import check_output, write_text_whole

    if output:
        check_output(output, evaluation.are_scores)
    metrics = evaluation.evaluate(
        model, **asdict(data), protocol=protocol, gamma=gamma, min_score=min_score, batch_size=batch_size
    )
    _show(metrics, "S-mIoU", "U-mIoU", "hIoU", "mIoU", "PA", "MA", "U-PA", "U-MA")
    if "with_background" in metrics:
        logger.info("With background counted as a seen class, which a pixel of no class is given to:")
        keys = ("S-mIoU", "U-mIoU", "hIoU", "background_IoU", "background_unlabelled", "min_score")
        _show(metrics["with_background"], *keys)
    if output and PartialState().is_main_process:
        write_text_whole(output, json.dumps(metrics, indent=1))


def _show(scores: dict, *keys: str) -> None:
    for key in keys:
        logger.info("%-7s %s", key, "undefined" if scores[key] is None else f"{scores[key]:.4f}")
