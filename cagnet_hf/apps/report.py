"""What a finished run leaves behind: the model folder, the metrics, the pictures."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
from PIL import Image

from ..data.label_space import UNLABELLED, LabelSpace
from ..data.survey import spread
from ..files import write_text_whole
from ..hub.cards.trained import model_card
from ..hub.models import figure_titles, published_recipe
from ..training.loop import Trainer, metrics_json
from ..training.run_folder import FIGURES, METRICS, MODEL
from ..weights.folders import CARD, save_model_folder
from .charts import confusion_matrix, loss_curves, per_class_bars
from .pictures import prediction_grid
from .prediction import segment

NUM_PICTURES = 8


def write_report(trainer: Trainer) -> None:
    """Write `model/`, `metrics.json` and `figures/` into the run's folder (main process only)."""
    if not trainer.accelerator.is_main_process:
        return
    folder, state = trainer.output_dir, trainer.state
    metrics = metrics_json(state)
    figures = folder / FIGURES
    # The model before anything that may fail: what was trained for hours is not lost with a picture.
    save_model_folder(trainer.model, trainer.processor, folder / MODEL, _card(trainer, metrics))
    figures.mkdir(exist_ok=True)
    title = f"{trainer.recipe.method} on {trainer.benchmark.name}"
    if trainer.recipe.benchmark == "scenes":
        title += " (synthetic images)"
    if any(key.startswith("loss/") for entry in state.history for key in entry):  # a closed form has no loss
        loss_curves(state.history, figures / "losses.png")
    scores = state.stages[-1]["metrics"]
    per_class_bars(scores, figures / "per_class_iou.png", title=title)
    confusion_matrix(scores, figures / "confusion.png", title=title)
    _predictions(trainer, title).save(figures / "predictions.png")
    write_text_whole(folder / MODEL / CARD, _card(trainer, metrics))  # with the figures
    # Last: a folder with metrics.json holds a finished run.
    write_text_whole(folder / METRICS, metrics)


def _card(trainer: Trainer, metrics: str) -> str:
    return model_card(
        published_recipe(trainer.recipe),
        json.loads(metrics),
        class_embeddings=trainer.recipe.class_embeddings,
        figures=figure_titles(trainer.output_dir / FIGURES, f"../{FIGURES}"),
    )


def _predictions(trainer: Trainer, title: str):
    """Test images beside truth and prediction: as many classes as few images can show, unseen ones first."""
    config = trainer.model.config
    # In pictures, pixels without a label are 255, whatever the model calls them.
    labels_of = replace(LabelSpace.of(config), ignore_index=UNLABELLED)
    candidates, shown = [], np.zeros(config.num_labels, bool)
    for sample in islice(trainer.test_set, 200):
        labels = labels_of.to_model_order(sample.labels)
        present = np.isin(np.arange(config.num_labels), labels)
        if len(candidates) < NUM_PICTURES or (present & ~shown).any():
            candidates.append((present, labels, sample.image))
            shown |= present
    weights = np.where(np.isin(np.arange(config.num_labels), config.unseen_ids), 10.0, 1.0)
    chosen = spread(np.stack([present for present, *_ in candidates]), NUM_PICTURES, weights)
    rows = []
    trainer.model.eval()
    for _, labels, image in (candidates[i] for i in chosen):
        image = Image.fromarray(image.permute(1, 2, 0).numpy())
        (prediction,) = segment(trainer.model, trainer.processor, [image])
        rows.append((image, labels, prediction.label_map))
    names = [config.id2label[i] for i in range(config.num_labels)]
    return prediction_grid(rows, names, config.seen_ids, config.unseen_ids, title=title)
