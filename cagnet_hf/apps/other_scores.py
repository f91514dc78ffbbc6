"""The other scores of finished rows: by protocol `paper`, and with background counted as a class."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from accelerate import Accelerator

from ..evaluation.none_of_these import curve_with_background
from ..evaluation.scoring import score, square_size
from ..files import check_output, made_by, write_text_whole
from ..methods.options import Recipe
from ..training.features import cached_features
from ..training.run_folder import MODEL
from ..training.setup import benchmark_of, build_processor, dataset_of
from ..weights.folders import load_model

OTHER_SCORES = "other_scores.json"  # in the folder of a run
# The probability of its label below which a pixel is left without a class: set beforehand, not chosen.
MIN_SCORES = (0.0, 0.5, 0.9)


def other_scores(recipe: Recipe, folder: Path, features: Path) -> dict:
    """What a finished run scores otherwise; kept in the folder of the run, and read from there while the model stays.

    Args:
        recipe: Of the run.
        folder: Of the run.
        features: Where features of a resting backbone lie, unless the recipe says so.

    Returns:
        `paper`: the scores by protocol `paper`. `with_background`, where the benchmark has a class of this name: by
        the probability of `MIN_SCORES`, as text, the scores of `PixelCounts.with_background`.
    """
    path, mark = folder / OTHER_SCORES, made_by("compare")
    check_output(path, mark)
    of = {"made_by": mark, "of": _fingerprint(folder / MODEL), "min_scores": list(MIN_SCORES)}
    with suppress(OSError, ValueError, KeyError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if {key: kept[key] for key in of} == of:
            return kept["scores"]
    accelerator = Accelerator()
    scores = _measure(recipe, folder, features, accelerator)
    if accelerator.is_main_process:
        write_text_whole(path, json.dumps(of | {"scores": scores}) + "\n")
    accelerator.wait_for_everyone()
    return scores


def _fingerprint(model: Path) -> str:
    """Told by weights and configuration: a calibration that is applied later changes the scores."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted([*model.glob("*.safetensors"), model / "config.json"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _measure(recipe: Recipe, folder: Path, features: Path, accelerator: Accelerator) -> dict:
    model, processor = load_model(str(folder / MODEL))
    model.to(accelerator.device)
    images, benchmark = dataset_of(recipe, recipe.test_split), benchmark_of(recipe)

    def options(processor) -> dict:
        """How to score images that this processor prepares: with maps that are computed once for all rows."""
        if recipe.feature_cache is None or len(model.config.test_scales) > 1:
            return {"accelerator": accelerator}
        cache = cached_features(recipe, features, images, model, processor, accelerator, scored=True)
        return {"accelerator": accelerator, "maps": cache.in_order()}

    squares = recipe.model_copy(update={"processor": recipe.processor | {"size": square_size(processor)}})
    found = {"paper": score(model, processor, images, protocol="paper", **options(build_processor(squares)))}
    if benchmark.background_id is not None:
        curve = curve_with_background(
            model, processor, images, benchmark, min_scores=MIN_SCORES, **options(build_processor(recipe))
        )
        found["with_background"] = {str(min_score): scores for min_score, scores in curve.items()}
    return found
