"""Training from a recipe, from the first image to the folder that a run leaves behind."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from ..hub.models import check_own_weights, push_model
from ..hub.repositories import claim_repository
from ..model.image_processing_cagnet import CaGNetImageProcessor
from ..model.modeling_cagnet import CaGNetForSemanticSegmentation
from ..training.loop import Trainer, metrics_json
from ..training.recipe_files import load_recipe
from .charts import check_drawing
from .report import write_report

logger = getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        model: The trained model, in evaluation mode, on the device that it was trained on.
        processor: The image processor that the model was trained with.
        metrics: What `metrics.json` says: the scores on the test split, and those after every stage.
        output_dir: The run's folder.
    """

    model: CaGNetForSemanticSegmentation
    processor: CaGNetImageProcessor
    metrics: dict
    output_dir: Path


def train(
    recipe: str | Path,
    output_dir: str | Path,
    *overrides: str,
    resume: bool = False,
    push_to_hub: str | None = None,
    **keys: Any,
) -> Run:
    """Train a model from a recipe: `train("scenes", "outputs/scenes", seed=1)`.

    Args:
        recipe: A name such as `scenes` or `pascal_voc_edge/cagnet_pi`, or a YAML file.
        output_dir: The folder that gets `model/`, `metrics.json`, `figures/` and `checkpoints/`.
        overrides: Recipe keys to change as the command line has them: `"stages.finetune.iterations=300"`.
        resume: Go on from the newest checkpoint in `output_dir`.
        push_to_hub: A repository of the Hub that gets the model after training; whether it may be written to is
            checked before training.
        keys: Recipe keys to change. A dictionary changes the keys in it and leaves the others:
            `stages={"finetune": {"iterations": 300}}`. A dotted key gets its value as it is:
            `**{"stages.finetune.iterations": 300}`.

    Raises:
        ValueError: The recipe, its data or `output_dir` cannot be used, or the Hub refused.
        FloatingPointError: A loss or a weight is not finite.
        OSError: A checkpoint could not be written.
        Stopped: SIGTERM or Ctrl-C ended the run; `resume=True` goes on with it.
    """
    output_dir = Path(output_dir)
    chosen = load_recipe(str(recipe), [*overrides, *_as_overrides(keys)])
    pushes = push_to_hub is not None and Accelerator().is_main_process
    if pushes:  # before hours are spent
        check_own_weights(chosen)
        claim_repository(push_to_hub)
    check_drawing()
    trainer = Trainer(chosen, output_dir, resume=resume)
    trainer.run()
    with trainer.stop.heard():
        write_report(trainer)
    trainer.folder.leave()
    if trainer.accelerator.is_main_process:
        logger.info("Wrote %s", output_dir)
    if pushes:
        logger.info("Pushed %s", push_model(output_dir / "model", push_to_hub).commit_url)
    return Run(trainer.model.eval(), trainer.processor, json.loads(metrics_json(trainer.state)), output_dir)


def _as_overrides(keys: Mapping[str, Any], parents: str = "") -> Iterator[str]:
    """Dotted `key=value`, the values as YAML."""
    for key, value in keys.items():
        if isinstance(value, Mapping) and "." not in key:
            yield from _as_overrides(value, f"{parents}{key}.")
        else:
            value = str(value) if isinstance(value, Path) else value
            text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
            value = text.removesuffix("...\n").strip()  # the end of a document, after a bare value
            yield f"{parents}{key}={value}"
