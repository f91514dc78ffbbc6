"""`cagnet-hf calibrate`."""

import json
from dataclasses import asdict
from logging import getLogger
from pathlib import Path

from .options import DatasetOptions

logger = getLogger(__name__)


def calibrate(data: DatasetOptions, *, model: str, apply_to: Path | None = None, output: Path | None = None) -> None:
    """Choose the calibration of a model on held-out seen classes.

    A model, of whichever method, gives too few or too many pixels to the classes whose labels it saw. A calibration,
    gamma, is subtracted from their probabilities (negative: fewer pixels go to unseen classes); SPNet with one is
    called SPNet-c. Every calibration of a grid is scored in one pass, and the one of the highest hIoU, the
    harmonic mean over seen and unseen classes, is chosen. Choose on a model that was trained with split=tuning, whose
    unseen classes are held-out seen ones: those that the class table names (tuning), or else some that are spread
    evenly over the seen ones.

    Args:
        model: The folder of a model that was trained with split=tuning.
        apply_to: The model folder whose config.json gets the chosen calibration.
        output: The JSON file for the scores of the whole grid.

    Examples:
        cagnet-hf train --recipe scenes/spnet --output_dir outputs/tuning split=tuning
        cagnet-hf calibrate --model outputs/tuning/model --dataset scenes:0 --apply_to outputs/spnet/model
    """
    from accelerate import PartialState

    from ..apps.evaluation import apply_calibration, check_calibratable, choose_calibration
    from ..files import check_output, made_by, write_text_whole

    if output:
        check_output(output, made_by("calibrate"))
    if apply_to is not None:
        check_calibratable(apply_to)

    chosen, curve = choose_calibration(model, apply_to=apply_to, **asdict(data))
    if not PartialState().is_main_process:
        return
    for gamma, metrics in curve.items():
        columns = "  ".join(f"{key} {metrics[key] or 0.0:.4f}" for key in ("S-mIoU", "U-mIoU", "hIoU"))
        logger.info("%s gamma %.2f  %s", "*" if gamma == chosen else " ", gamma, columns)
    if output:
        facts = {"made_by": made_by("calibrate"), "chosen": chosen, "curve": curve}
        write_text_whole(output, json.dumps(facts, indent=1))
    if apply_to is not None:
        apply_calibration(apply_to, chosen)
