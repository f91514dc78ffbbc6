"""`cagnet-hf calibrate`."""

import json
from dataclasses import asdict
from logging import getLogger
from pathlib import Path
from typing import Literal

from .options import DatasetOptions

logger = getLogger(__name__)


def calibrate(
    data: DatasetOptions,
    *,
    model: str,
    choose: Literal["gamma", "min_score"] = "gamma",
    apply_to: Path | None = None,
    output: Path | None = None,
) -> None:
    """Choose the calibration of a model on held-out seen classes.

    A model, of whichever method, gives too few or too many pixels to the classes whose labels it saw. A calibration,
    gamma, is subtracted from their probabilities (negative: fewer pixels go to unseen classes); SPNet with one is
    called SPNet-c. Every calibration of a grid is scored in one pass, and the one of the highest hIoU, the
    harmonic mean over seen and unseen classes, is chosen. Choose on a model that was trained with split=tuning, whose
    unseen classes are held-out seen ones: those that the class table names (tuning), or else some that are spread
    evenly over the seen ones.

    Args:
        model: The folder of a model that was trained with split=tuning.
        choose: min_score chooses, in place of the calibration gamma, how probable the class of a pixel must be, so
            that the pixel is not given to no class: the number of the best scores where background counts as a class.
            Any model will do, because pixels of unseen classes are not used.
        apply_to: The model folder whose config.json gets what was chosen.
        output: The JSON file for the scores of the whole grid.

    Examples:
        cagnet-hf train --recipe scenes/spnet --output_dir outputs/tuning split=tuning
        cagnet-hf calibrate --model outputs/tuning/model --dataset scenes:0 --apply_to outputs/spnet/model
        cagnet-hf calibrate --model outputs/spnet/model --dataset scenes:0 --split train --choose min_score
    """
    from accelerate import PartialState

    from ..apps.evaluation import apply_calibration, check_calibratable, choose_calibration
    from ..apps.none_of_these import apply_min_score, choose_min_score
    from ..files import check_output, made_by, write_text_whole

    if output:
        check_output(output, made_by("calibrate"))
    if apply_to is not None:
        check_calibratable(apply_to)

    if choose == "gamma":
        chosen, curve = choose_calibration(model, apply_to=apply_to, **asdict(data))
    else:
        chosen, curve = choose_min_score(model, **asdict(data))
    if not PartialState().is_main_process:
        return
    keys = ("S-mIoU", "U-mIoU", "hIoU") if choose == "gamma" else ("S-mIoU", "hIoU", "background_IoU")
    for value, metrics in curve.items():
        columns = "  ".join(f"{key} {metrics[key] or 0.0:.4f}" for key in keys)
        logger.info("%s %s %.2f  %s", "*" if value == chosen else " ", choose, value, columns)
    if output:
        facts = {"made_by": made_by("calibrate"), "chosen": chosen, "curve": curve}
        write_text_whole(output, json.dumps(facts, indent=1))
    if apply_to is not None:
        (apply_calibration if choose == "gamma" else apply_min_score)(apply_to, chosen)
