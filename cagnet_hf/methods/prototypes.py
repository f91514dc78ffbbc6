"""Prototypes (this package's own row): class means from what the backbone's own classifier knows by name."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from pydantic import Field

from ..data.names import is_background
from ..files import write_text_whole
from ..model.maps_cagnet import centre_labels
from ..patches.layouts import class_odds
from . import register
from .base import Batch, Learner, Method
from .known_names import labelled_pixels, load_known_names, observe_known_classes
from .leaving_out import CHOSEN, CellSample, Setting, choose_setting
from .options import KnownNamesRecipe, PassRecipe, Recipe, RecipeError
from .pseudo_labels import network_inputs


class PrototypesStage(PassRecipe, KnownNamesRecipe):
    """One pass over whole images, in which the network rests. The Bayes rule becomes the classifier, with prior odds
    of 1 for seen classes and 1 + `unseen_rate` for unseen ones."""

    shrinkage: float = Field(0.05, ge=0, le=1, description="share of the covariance that its diagonal replaces")
    covariance_scale: float = Field(6.0, gt=0, description="factor on the covariance: above 1 scores are less sure")
    unseen_rate: float = Field(0.0, ge=0, description="an unseen class has prior odds of 1 + unseen_rate")
    # Those of the recipe stay where no others are clearly better (see `leaving_out`).
    choose: bool = Field(
        False, description="choose unseen_rate, model.image_prior and model.calibration by leaving out seen classes"
    )


class PrototypesRecipe(Recipe):
    """The recipe of prototypes."""

    stages: dict[str, PrototypesStage] = Field(min_length=1)


@register
class Prototypes(Method):
    """The backbone rests. Unlabelled pixels give the mean feature of every class that its classifier knows, names say
    which of them a class of the benchmark is like, and a Bayes rule of Gaussians scores pixels."""

    titles = {"prototypes": "Prototypes"}
    paper = "this package's own"
    parts = {"generator": "prototypes"}
    recipe_class = PrototypesRecipe
    prepared = (CHOSEN,)
    _setting: Setting | None = None

    @classmethod
    def check(cls, name, stage, model):
        super().check(name, stage, model)
        if stage.optimizers():
            raise RecipeError(
                f"stages.{name}: prototypes follow in closed form, but {', '.join(stage.optimizers())} has an "
                "optimizer; leave it out"
            )
        if model.generator is None or model.config.generator != "prototypes":
            raise RecipeError(f"stages.{name}: needs model.generator=prototypes")
        if stage.choose and model.config.aspp != "none":
            raise RecipeError(f"stages.{name}.choose needs the backbone's own features: set model.aspp=none")

    @classmethod
    def learns_by_gradients(cls, stage):
        return False

    @classmethod
    def learns_by_batches(cls, stage):
        return False

    def prepare(self, label_maps: Iterable, folder: Path) -> None:
        """Load the head of the image classifier, and tell the generator what its classes are called."""
        self._chosen = folder / CHOSEN
        self._head = load_known_names(self.model, self.model.generator.mean, self.stage)

    @torch.no_grad()
    def iterate(self, batches: Iterable[Batch], learn: Learner) -> dict[str, torch.Tensor]:
        """Observe every image once: labelled pixels for their classes, the others for the known classes.

        Background that is a seen class is observed for both: it shows known classes as unlabelled pixels do.
        """
        model, generator = self.model, self.model.generator
        background = [i for i, name in model.config.id2label.items() if is_background(name)]
        generator.start_observing()
        cells = CellSample() if self.stage.choose else None
        for batch in batches:
            maps = model.cagnet(**network_inputs(batch), output_hidden_states=True)
            labels = centre_labels(batch["labels"], maps.features.shape[-2:])
            labelled, labels_of_them = labelled_pixels(maps.features, labels, model.config.ignore_index)
            unlabelled = labels == model.config.ignore_index
            if cells is not None:
                cells.add(maps.features, labels.masked_fill(unlabelled, model.config.num_labels))
            with torch.autocast(maps.features.device.type, enabled=False):  # halves would round statistics
                generator.observe(labelled, labels_of_them)
                others = unlabelled | torch.isin(labels, labels.new_tensor(background))
                observe_known_classes(generator.mean, self._head, maps, others)
        generator.share()
        if cells is not None and cells.batches:
            self._choose(cells)
        return {}

    def _choose(self, cells: CellSample) -> None:
        """Choose between seen and unseen classes, and write down what was chosen, which `finish` reads."""
        config, stage = self.model.config, self.stage
        default = Setting(stage.unseen_rate, config.image_prior, config.calibration)
        arguments = cells, self.model.generator, self._head, self.model.class_embeddings, config.unseen_ids, default
        with torch.autocast(self.model.device.type, enabled=False):
            chosen, scores = choose_setting(*arguments, **self._fit_options())
        facts = {"chosen": chosen._asdict(), "default": default._asdict()}
        facts["scores"] = {name: scores.get(Setting(**numbers)) for name, numbers in facts.items()}
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not together or torch.distributed.get_rank() == 0:  # every process has chosen the same
            write_text_whole(self._chosen, json.dumps(facts, indent=1) + "\n")
        self._setting = chosen

    def _fit_options(self) -> dict[str, float | None]:
        stage = self.stage
        return {
            "temperature": stage.tau,
            "shrinkage": stage.shrinkage,
            "covariance_scale": stage.covariance_scale,
        }

    @torch.no_grad()
    def finish(self) -> None:
        """Choose s on the seen classes; the generator's Bayes rule becomes the classifier."""
        model, stage, generator = self.model, self.stage, self.model.generator
        if not generator.class_counts.any():
            return
        rate = stage.unseen_rate
        if stage.choose and self._setting is None and self._chosen.is_file():  # a run that was resumed at its end
            self._setting = Setting(**json.loads(self._chosen.read_text(encoding="utf-8"))["chosen"])
        if self._setting is not None:
            rate, model.config.image_prior, model.config.calibration = self._setting
        embeddings = model.class_embeddings
        odds = class_odds(len(embeddings), model.config.unseen_ids, rate, embeddings.device)
        with torch.autocast(embeddings.device.type, enabled=False):
            generator.fit(embeddings, **self._fit_options())
            weights, biases = generator.bayes_rule(embeddings, odds.log())
        model.classifier.weight.copy_(weights[:, :, None, None])
        model.classifier.bias.copy_(biases)
