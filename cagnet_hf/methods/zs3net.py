"""ZS3Net: a generator that matches moments (GMMN) makes features of a resting network's unseen classes."""

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from pydantic import Field

from ..model.maps_cagnet import mean_cross_entropy, resize_labels, to_pixel_list
from . import register
from .base import Batch, Learner, Method
from .losses import moment_matching_loss
from .options import GeneratingStageRecipe, Options, Recipe, RecipeError
from .pseudo_labels import network_inputs


class MomentMatchingRecipe(Options):
    """Joint steps: the generator is fitted to the features of each image and class, then the classifier learns from
    real features of seen pixels and made features of unseen ones."""

    pairs_per_class: int = Field(128, ge=1, description="features of an image and class that are compared")
    unseen_class_weight: float = Field(100.0, gt=0, description="of unseen classes in the classifier's loss")
    bandwidth_scale: float = Field(1.0, gt=0, description="factor on the published kernels' bandwidths")


class ZS3NetStage(GeneratingStageRecipe):
    """A stage of real steps, or of joint steps where it says how moments are matched."""

    moment_matching: MomentMatchingRecipe | None = Field(None, description="joint steps; null: real steps")


class ZS3NetRecipe(Recipe):
    """The recipe of a ZS3Net."""

    stages: dict[str, ZS3NetStage] = Field(min_length=1)


@register
class ZS3Net(Method):
    """Pre-training by real steps; then joint steps of the generator and the classifier, while the network rests."""

    titles = {"zs3net": "ZS3Net"}
    paper = "Bucher et al., Zero-Shot Semantic Segmentation, NeurIPS 2019 (arXiv 1906.00817)"
    parts = {"generator": "moment_matching"}
    recipe_class = ZS3NetRecipe

    @classmethod
    def check(cls, name, stage, model):
        super().check(name, stage, model)
        if stage.moment_matching is None:
            return
        if stage.network is not None:
            raise RecipeError(
                f"stages.{name}.network: the network rests in joint steps (moment_matching); leave it out"
            )
        for part in ("generator", "classifier"):
            if getattr(stage, part) is None:
                raise RecipeError(f"stages.{name}.{part}: joint steps (moment_matching) need an optimizer for it")

    @classmethod
    def learns_by_batches(cls, stage):
        return stage.moment_matching is None

    def iterate(self, batches: Sequence[Batch | None], learn: Learner) -> dict[str, torch.Tensor]:
        if self.stage.moment_matching is None:
            return super().iterate(batches, learn)
        (batch,) = batches
        return self._joint_steps(self.with_pseudo_labels(batch), learn)

    def _joint_steps(self, batch: Batch, learn: Learner) -> dict[str, torch.Tensor]:
        """One update of the generator per image and class, then one of the classifier (ZS3Net, section 3.2).

        The generator matches the moments of `pairs_per_class` features of that image and class, drawn with
        replacement. The classifier sees real features of labelled pixels, and made ones where an ignored pixel's drawn
        class is unseen.
        """
        model, config, rule = self.model, self.model.config, self.stage.moment_matching
        with torch.no_grad():
            features = model.cagnet(**network_inputs(batch)).features
        labels = resize_labels(batch["labels"], features.shape[-2:])
        classes, groups = _features_by_image_and_class(features, labels, config.num_labels, rule.pairs_per_class)
        matching = []
        for step in range(_most_in_any_process(len(classes), features.device)):
            if step < len(classes):
                made = model.synthesize_features(classes[step].expand(1, 1, rule.pairs_per_class))
                loss = moment_matching_loss(made[0, :, 0].t(), groups[step], bandwidth_scale=rule.bandwidth_scale)
                matching.append(loss.detach())
            else:  # another process has more classes to learn from
                loss = _zero(model.generator)
            learn.backward(loss)
            learn.step(("generator",))
        terms = {"moment_matching": torch.stack(matching).mean()} if matching else {}

        inputs, truth = self._real_and_made(features, labels)
        if truth.numel():
            loss = mean_cross_entropy(
                model.classify(inputs),
                truth[None, None],
                ignore_index=config.ignore_index,
                class_weights=self._class_weights,
            )
            terms["classification"] = loss.detach()
        else:
            loss = _zero(model.classifier)
        learn.backward(loss)
        learn.step(("classifier",))
        return terms

    @cached_property  # a step would wait until a GPU has got them
    def _class_weights(self) -> torch.Tensor:
        """The weights of the classes in the classifier's loss, `(N,)`."""
        config = self.model.config
        weights = torch.ones(config.num_labels)
        weights[list(config.unseen_ids)] = self.stage.moment_matching.unseen_class_weight
        return weights.to(self.model.class_embeddings.device)

    @torch.no_grad()
    def _real_and_made(self, features, labels) -> tuple[torch.Tensor, torch.Tensor]:
        """Features `(1, D, 1, P)` for the classifier and their classes `(P,)`."""
        config = self.model.config
        labelled = labels != config.ignore_index
        drawn = self.draw_label_maps(tuple(labels.shape))
        replaced = ~labelled & (drawn >= len(config.seen_ids))
        inputs = to_pixel_list(features, labelled)
        if replaced.any():
            inputs = torch.cat([inputs, self.model.synthesize_features(drawn[replaced][None, None])], dim=-1)
        return inputs, torch.cat([labels[labelled], drawn[replaced]])


def _features_by_image_and_class(features, labels, num_classes: int, count: int):
    """`count` features `(G, count, D)` of every class of every image, drawn with replacement; the classes `(G,)`."""
    known = (labels >= 0) & (labels < num_classes)
    one_hot = F.one_hot(labels.where(known, num_classes).flatten(1), num_classes + 1)[..., :num_classes]  # (B, P, N)
    images, classes = one_hot.any(dim=1).nonzero(as_tuple=True)
    if len(classes) == 0:
        return classes, features.new_zeros(0, count, features.shape[1])
    drawn = torch.multinomial(one_hot.mT[images, classes].float(), count, replacement=True)
    return classes, features.flatten(2).mT[images[:, None], drawn]


def _most_in_any_process(count: int, device) -> int:
    """The largest of all processes' counts, so that they step together."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return count
    largest = torch.tensor(count, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


def _zero(module: torch.nn.Module) -> torch.Tensor:
    return sum(parameter.sum() for parameter in module.parameters()) * 0.0
