"""What a method is: its name, the parts that it needs, the options of its stages, its steps and its checks.

A step returns one total whose single backward gives every part its own gradient: what a part must not learn from is
detached, and the network's share of the classification loss is a scale on its gradient.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from ..model.maps_cagnet import resize_labels
from ..model.modeling_cagnet import CaGNetForSemanticSegmentation
from ..patches.layouts import class_odds
from .losses import multi_scale_cross_entropy
from .options import PARTS, Recipe, RecipeError, StageRecipe
from .pseudo_labels import label_ignored_pixels, network_inputs

Batch = dict[str, torch.Tensor]


class Learner(Protocol):
    """What updates a model: the training loop hands one to `Method.iterate`."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss to those since the last step."""

    def step(self, parts: Sequence[str]) -> None:
        """Update these parts by their gradients."""


@dataclass
class StepResult:
    """The loss of a step, and where it leads.

    Attributes:
        total: What is differentiated, `()`.
        terms: The terms of the total by name, detached and unweighted.
        learners: The parts that learn from the total.
    """

    total: torch.Tensor
    terms: dict[str, torch.Tensor]
    learners: tuple[str, ...] = PARTS


@dataclass
class RealStep:
    """A step on images while it is put together: what the network made of a batch, and the terms so far.

    Attributes:
        output: `CaGNetModelOutput` at scale 1.
        labels: `(B, h, w)` labels at the size of the feature map.
        labelled: `(B, h, w)` bool, where there is a label.
        terms: The terms by name, detached and unweighted.
        weighted: The weighted terms, whose sum is the total.
    """

    output: Any
    labels: torch.Tensor
    labelled: torch.Tensor
    terms: dict[str, torch.Tensor] = field(default_factory=dict)
    weighted: list[torch.Tensor] = field(default_factory=list)

    def add(self, name: str, weight: float, value: torch.Tensor) -> None:
        """Add a term to the total."""
        self.terms[name] = value.detach()
        self.weighted.append(weight * value)


class Method:
    """A segmenter that learns from labelled pixels alone, and what every other method is derived from.

    One object runs one stage.

    Args:
        recipe: The recipe of the run, of the class `Recipe` that the method names.
        stage: The stage to run.
        model: `CaGNetForSemanticSegmentation` with the parts that the stage trains.

    Attributes:
        titles: The rows of the published tables that are this method: name of the row -> what tables call it. A row
            with self-training has the suffix `_st`, which `cagnet_hf.methods.title_of` knows.
        paper: Where the method was published.
        parts: Fields of the model's configuration that the method needs, by name.
        recipe_class: The class of its recipes, which types the options of its stages.
        prepared: Folders in a run's folder that `prepare` makes, for stages to come.
    """

    titles: ClassVar[dict[str, str]] = {"segmenter": "Segmenter"}
    paper: ClassVar[str] = ""
    parts: ClassVar[dict[str, Any]] = {"generator": None}
    recipe_class: ClassVar[type[Recipe]] = Recipe
    prepared: ClassVar[tuple[str, ...]] = ()

    def __init__(self, recipe: Recipe, stage: StageRecipe, model: CaGNetForSemanticSegmentation):
        self.recipe, self.stage, self.model = recipe, stage, model

    @classmethod
    def check(cls, name: str, stage: StageRecipe, model: CaGNetForSemanticSegmentation) -> None:
        """Refuse, before the first iteration, a stage that cannot run.

        Args:
            name: What the recipe calls the stage.
            model: The model of the stage.

        Raises:
            RecipeError: The stage trains a part that the model lacks or no part at all, or numbers do not fit.
        """
        config = model.config
        for part in ("classifier", "generator"):
            trained = getattr(stage, part) is not None
            if (trained or part in stage.reinitialize) and not _has_weights(getattr(model, part)):
                verb = "trains" if trained else "reinitialize:"
                raise RecipeError(f"stages.{name} {verb} the {part}, but this model has none")
        if not stage.optimizers() and cls.learns_by_gradients(stage):
            raise RecipeError(f"stages.{name} trains nothing: give one of {', '.join(PARTS)} an optimizer")
        if stage.accumulate > 1 and not cls.learns_by_batches(stage):
            raise RecipeError(f"stages.{name}.accumulate: its steps are no gradient of a batch; leave it out")
        if stage.pseudo_labels is not None:
            if not config.unseen_ids:
                raise RecipeError(f"stages.{name}.pseudo_labels: there is no unseen class to label pixels with")
            if stage.pseudo_labels.top_k > config.num_labels:
                top_k = stage.pseudo_labels.top_k
                raise RecipeError(f"stages.{name}.pseudo_labels.top_k: {top_k} of {config.num_labels} classes")

    @classmethod
    def learns_by_gradients(cls, stage: StageRecipe) -> bool:
        """Whether the stage needs an optimiser."""
        return stage.iterations > 0

    @classmethod
    def learns_by_batches(cls, stage: StageRecipe) -> bool:
        """Whether an iteration is one step of the gradient of a batch, so that gradients can be accumulated."""
        return True

    def prepare(self, label_maps: Iterable, folder: Path) -> None:
        """Make ready what the stage needs beside model and images; the main process comes first.

        Args:
            label_maps: The training label maps `(h, w)` in the size of the feature map, with unseen classes hidden;
                they are read only when they are iterated over.
            folder: The folder of the run, for what is to be found again when the run is resumed.
        """

    def iterate(self, batches: Sequence[Batch | None], learn: Learner) -> dict[str, torch.Tensor]:
        """One iteration: a step for each batch, then an update by the mean of their gradients.

        Args:
            batches: Each with `pixel_values` `(B, 3, H, W)`, `labels` `(B, H, W)` in model order, `ignore_index`
                where there is none, and `padding` `(B, H, W)`, True beyond the image; or with `backbone_features`
                `(B, C, h, w)` in place of pixels, and labels of cells. None where the stage says that the iteration
                is synthetic.
            learn: What makes the update.

        Returns:
            The terms of the loss by name.
        """
        terms: dict[str, torch.Tensor] = {}
        for batch in batches:
            result = self.synthetic_step() if batch is None else self.real_step(self.with_pseudo_labels(batch))
            learn.backward(result.total / len(batches))
            for name, value in result.terms.items():
                terms[name] = terms.get(name, 0) + value / len(batches)
        learn.step(result.learners)
        return terms

    def finish(self) -> None:
        """Bring the model to what the iterations so far have found; called before it is scored or saved for use."""

    def with_pseudo_labels(self, batch: Batch) -> Batch:
        """The batch; in self-training with labels of the model's own where there were none."""
        if self.stage.pseudo_labels is None:
            return batch
        return batch | {"labels": label_ignored_pixels(self.model, batch, self.stage.pseudo_labels)}

    def real_step(self, batch: Batch) -> StepResult:
        """The losses on images: the classification loss, and what a derived method adds to it."""
        model, stage, weights = self.model, self.stage, self.stage.weights
        ignore_index, learns = model.config.ignore_index, stage.network is not None
        with torch.set_grad_enabled(learns):
            output, maps = model.cagnet.multi_scale(scales=stage.scales, **network_inputs(batch))
        labels = resize_labels(batch["labels"], maps[0].shape[-2:])
        step = RealStep(output, labels, labels != ignore_index)
        if learns and weights.classifier_real != weights.backbone_classification:
            factor = weights.backbone_classification / weights.classifier_real
            maps = [_ScaleGradient.apply(m, factor) for m in maps]
        logit_maps = [self.trained_columns(logits) for logits in model.classify_scales(maps)]
        label_maps = [resize_labels(batch["labels"], logits.shape[-2:]) for logits in logit_maps]
        classification = multi_scale_cross_entropy(
            logit_maps, label_maps, ignore_index=ignore_index, reduction=stage.scale_loss
        )
        step.add("classification", weights.classifier_real, classification)
        self.add_terms(step)
        return StepResult(sum(step.weighted), step.terms)

    def trained_columns(self, logits: torch.Tensor) -> torch.Tensor:
        """The class columns of logits `(B, N, h, w)` that the classification loss compares."""
        return logits

    def add_terms(self, step: RealStep) -> None:
        """Add the losses of a real step beyond classification."""

    def synthetic_step(self) -> StepResult:
        """The losses of a step that touches no image; only for stages that have such iterations."""
        raise NotImplementedError(f"{type(self).__name__} has no synthetic steps")

    def draw_label_maps(self, map_shape: tuple[int, int, int]) -> torch.Tensor:
        """Label maps `(B, h, w)` of independent pixels, whose classes are drawn by the prior of `class_odds`."""
        return torch.multinomial(self.class_odds(), math.prod(map_shape), replacement=True).view(map_shape)

    def class_odds(self) -> torch.Tensor:
        """The stage's prior of a drawn class, `(N,)`: 1 for seen and 1 + `unseen_rate` for unseen ones."""
        return self._class_odds.clone()

    @cached_property  # a step would wait until a GPU has got them
    def _class_odds(self) -> torch.Tensor:
        config = self.model.config
        device = self.model.class_embeddings.device
        return class_odds(config.num_labels, config.unseen_ids, self.stage.unseen_rate, device)


def _has_weights(part: torch.nn.Module | None) -> bool:
    return part is not None and any(True for _ in part.parameters())


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, factor):
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None
