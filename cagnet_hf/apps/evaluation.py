"""Scoring a trained model on a dataset, and choosing the calibration of one."""

import json
import math
import os
from logging import getLogger
from pathlib import Path

from accelerate import Accelerator

from ..data.sources import open_with_classes
from ..evaluation.calibration import best_gamma, calibration_curve, check_choosable, check_gamma
from ..evaluation.none_of_these import score_with_background
from ..evaluation.scoring import check_classes, score
from ..files import write_text_whole
from ..hub.cards.calibrated import calibrated_card
from ..model.image_processing_cagnet import check_min_score
from ..weights.folders import CARD, load_model

logger = getLogger(__name__)


def evaluate(
    model,
    dataset: str | Path,
    *,
    processor=None,
    split: str = "test",
    protocol: str = "full",
    gamma: float | None = None,
    min_score: float | None = None,
    batch_size: int = 8,
    **columns,
) -> dict:
    """Score a model on the seen and unseen classes of a dataset.

    Args:
        model: A model folder, a Hub id, `ID@REVISION`, or a model; this needs its `processor`, too.
        dataset: A prepared folder, a Hub id, or `scenes:SEED`.
        split: The split of the dataset to score on.
        protocol: `"full"`: at the images' own sizes. `"paper"`: images warped to a square, at feature resolution.
        gamma: The calibration, -1 to 1, which is subtracted from the seen classes' probabilities (negative: fewer
            pixels go to unseen classes); the model's own when None.
        min_score: For the scores with background: a pixel whose label has a lower softmax probability is given to no
            class, which counts as background; the model's own when None.
        batch_size: Images of equal size per batch.
        columns: How the dataset is read: `image_column` and `mask_column`, where they have other names; `benchmark`,
            the name or class table of the masks' classes, where the dataset does not say; `label_map`, YAML of the ids
            of a dataset that counts otherwise, `"{1: dog, 7: null}"`; `streaming=True` to read rows as needed.

    Returns:
        The dictionary of the metric at `METRIC_PATH`, with `protocol` and `num_images`. In these scores every pixel is
        given to a class, and pixels without a class are not looked at. Where the dataset's class table has a class
        called background, `with_background` are the scores in which background counts as a seen class.

    Raises:
        ValueError: The model or the dataset cannot be used, they have other classes, or an option is out of range.
    """
    check_gamma(gamma)
    if min_score is not None:
        check_min_score(min_score)
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: choose a number of at least 1")
    if not isinstance(model, str | Path) and processor is None:
        raise ValueError("a model is scored with its image processor: evaluate(model, dataset, processor=processor)")
    accelerator = Accelerator()
    rows, classes = open_with_classes(str(dataset), split, **columns)
    if isinstance(model, str | Path):
        model, processor = load_model(str(model))
    check_classes(model.config, classes, str(dataset))
    own = model.config.calibration, model.config.min_score
    given = gamma, min_score
    try:
        model.config.calibration, model.config.min_score = (
            kept if new is None else new for kept, new in zip(own, given, strict=True)
        )
        options = {"protocol": protocol, "batch_size": batch_size, "accelerator": accelerator}
        model = model.to(accelerator.device)
        if classes is None or classes.background_id is None:
            return score(model, processor, rows, **options)
        return score_with_background(model, processor, rows, classes, **options)
    finally:
        model.config.calibration, model.config.min_score = own


def are_scores(path: Path) -> bool:
    """Whether a file holds what `evaluate` returns; the `metrics.json` of a run holds more."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    scored = {"per_class", "protocol", "num_images"}
    return isinstance(metrics, dict) and scored <= metrics.keys() and "stages" not in metrics


def choose_calibration(
    model: str, dataset: str, *, split: str = "test", apply_to: Path | None = None, **columns
) -> tuple[float, dict[float, dict]]:
    """The calibration of the highest hIoU, and the metrics of every calibration of the grid.

    Args:
        model: A model that was trained with `split=tuning`.
        dataset: What to score the model on.
        split: The split of the dataset.
        apply_to: The folder of the model that the calibration is for, if that is known: it must know more classes.
        columns: How the dataset is read; see `evaluate`.

    Raises:
        ValueError: See `evaluate`; or the model knows the classes that it would be tested on.
    """
    num_labels = None if apply_to is None else len(_config_of(apply_to)["id2label"])
    rows, classes = open_with_classes(dataset, split, **columns)
    network, processor = load_model(model)
    check_classes(network.config, classes, dataset)
    check_choosable(network.config, classes, model)
    if num_labels is not None and network.config.num_labels >= num_labels:
        raise ValueError(
            f"{model} knows {network.config.num_labels} classes, {apply_to} {num_labels}: "
            "choose on a model trained with split=tuning, which knows fewer"
        )
    curve = calibration_curve(network, processor, rows)
    chosen = best_gamma(curve)
    if chosen in (min(curve), max(curve)):
        logger.warning(
            "The best gamma, %s, lies at the edge of the grid, so that a better one may lie beyond: try "
            "`cagnet-hf evaluate --gamma %s`",
            chosen,
            math.copysign(0.98, chosen),
        )
    return chosen, curve


def check_calibratable(folder: Path) -> None:
    """Refuse, before the work, a folder that a calibration cannot be written to.

    Raises:
        ValueError: The folder holds no model of this package.
        OSError: A file of the folder cannot be written.
    """
    _config_of(folder)
    for path in (folder, folder / "config.json", folder / CARD):
        if path.is_symlink() and path != folder:
            raise FileExistsError(f"{path} is a link and stays as it is: name a folder that holds the file itself")
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(f"{path}: you may not write to it")


def apply_calibration(folder: Path, gamma: float) -> None:
    """Write a calibration into a model folder: into `config.json`, and into the card, which names the scores' own."""
    fields, card = _config_of(folder), folder / CARD
    text = None
    if card.is_file():
        text = calibrated_card(card.read_text(encoding="utf-8"), gamma, fields.get("calibration", 0.0))
    # The configuration first: it decides what the model does, and the card only tells of it.
    write_text_whole(folder / "config.json", json.dumps(fields | {"calibration": gamma}, indent=2) + "\n")
    if text is not None:
        write_text_whole(card, text)
    logger.info("Wrote calibration %s to %s", gamma, folder / "config.json")


def _config_of(folder: Path) -> dict:
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    if fields.get("model_type") != "cagnet":
        raise ValueError(f"{path}: not the configuration of a model of this package")
    return fields
