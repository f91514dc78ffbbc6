"""A Gaussian generator (this package's own row): class means regressed from the embeddings, one covariance."""

from collections.abc import Sequence

import torch
from pydantic import Field

from ..model.maps_cagnet import resize_labels
from . import register
from .base import Batch, Learner
from .cagnet import CaGNet, CaGNetRecipe, CaGNetStage
from .options import Options, RecipeError
from .pseudo_labels import network_inputs


class GaussianRecipe(Options):
    """A stage that observes features of a resting network and fits a Gaussian generator to them at its end. The Bayes
    rule becomes the classifier, with prior odds of 1 for seen classes and 1 + `unseen_rate` for unseen ones. See
    `GaussianGenerator.fit`."""

    ridge: float = Field(0.1, gt=0, description="of the regression of means from class vectors")
    shrinkage: float = Field(0.05, ge=0, le=1, description="share of the covariance that its diagonal replaces")
    covariance_scale: float = Field(1.0, gt=0, description="factor on the covariance: above 1 scores are less sure")


class GaussianStage(CaGNetStage):
    """A stage of CaGNet, or one that fits the Gaussian generator."""

    gaussian: GaussianRecipe | None = Field(None, description="fit the generator at the end of the stage; null: no")


class GaussianMethodRecipe(CaGNetRecipe):
    """The recipe of a Gaussian generator."""

    stages: dict[str, GaussianStage] = Field(min_length=1)


@register
class Gaussian(CaGNet):
    """CaGNet's pre-training; then the network rests, and everything else follows in closed form."""

    titles = {"gaussian": "Gaussian generator"}
    paper = "this package's own"
    parts = {"generator": "gaussian"}
    recipe_class = GaussianMethodRecipe

    @classmethod
    def check(cls, name, stage, model):
        fits = model.config.generator == "gaussian"
        if fits and stage.generator is not None:
            raise RecipeError(f"stages.{name}.generator: a Gaussian generator is fitted, not trained: use .gaussian")
        if stage.gaussian is not None and not fits:
            raise RecipeError(f"stages.{name}.gaussian needs model.generator=gaussian")
        super().check(name, stage, model)
        if stage.gaussian is not None and stage.optimizers():
            raise RecipeError(
                f"stages.{name}: fitting a Gaussian generator takes no optimizer, but {', '.join(stage.optimizers())} "
                "has one; leave it out"
            )

    @classmethod
    def learns_by_gradients(cls, stage):
        return stage.gaussian is None and super().learns_by_gradients(stage)

    @classmethod
    def learns_by_batches(cls, stage):
        return stage.gaussian is None

    @torch.no_grad()
    def iterate(self, batches: Sequence[Batch | None], learn: Learner) -> dict[str, torch.Tensor]:
        """Observe the features of labelled pixels; in a stage of CaGNet, an iteration of CaGNet."""
        if self.stage.gaussian is None:
            with torch.enable_grad():
                return super().iterate(batches, learn)
        (batch,) = (self.with_pseudo_labels(batch) for batch in batches)
        features = self.model.cagnet(**network_inputs(batch)).features
        labels = resize_labels(batch["labels"], features.shape[-2:])
        labelled = labels != self.model.config.ignore_index
        with torch.autocast(features.device.type, enabled=False):  # halves would round statistics of many batches
            self.model.generator.observe(features.permute(0, 2, 3, 1)[labelled], labels[labelled])
        return {}

    @torch.no_grad()
    def finish(self) -> None:
        """Fit the generator to what was observed; its Bayes rule becomes the classifier."""
        model, embeddings = self.model, self.model.class_embeddings
        if self.stage.gaussian is None or not model.generator.class_counts.any():
            return
        with torch.autocast(embeddings.device.type, enabled=False):
            model.generator.fit(embeddings, **self.stage.gaussian.model_dump())
            weights, biases = model.generator.bayes_rule(embeddings, self.class_odds().log())
        model.classifier.weight.copy_(weights[:, :, None, None])
        model.classifier.bias.copy_(biases)
