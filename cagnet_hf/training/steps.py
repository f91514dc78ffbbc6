"""Steps: one iteration's losses. A real step needs images, a synthetic step needs none.

A step returns one total whose single backward gives every part its own gradient: what a part must not learn from is
detached, and the network's share of the classification loss is a scale on its gradient.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..losses import (
    content_loss,
    critic_loss,
    generator_adversarial_loss,
    gradient_penalty,
    kl_to_standard_normal,
    multi_scale_cross_entropy,
)
from ..modeling_cagnet import resize_labels, to_pixel_list
from ..patches import class_odds
from .recipe import Recipe, StageRecipe

GRADIENT_PENALTY_WEIGHT = 10.0


@dataclass
class StepResult:
    """The total to be differentiated and its terms (detached, unweighted) by name."""

    total: torch.Tensor
    terms: dict[str, torch.Tensor]


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, factor):
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


def real_step(model, batch: dict[str, torch.Tensor], recipe: Recipe, stage: StageRecipe) -> StepResult:
    """Losses on images: classification, KL, and where the model has a generator the adversarial and content losses.

    Args:
        model: `CaGNetForSemanticSegmentation` in training mode.
        batch: `pixel_values` `(B, 3, H, W)` and `labels` `(B, H, W)`, model order, 255 = ignored.
    """
    weights, ignore_index = stage.weights, model.config.ignore_index
    learns = stage.network is not None
    with torch.set_grad_enabled(learns):
        output, maps = model.cagnet.multi_scale(batch["pixel_values"], stage.scales)
    label_maps = [resize_labels(batch["labels"], m.shape[-2:]) for m in maps]
    labels, labelled = label_maps[0], label_maps[0] != ignore_index

    terms, parts = {}, []

    def add(name, weight, value):
        terms[name] = value.detach()
        parts.append(weight * value)

    if learns and weights.classifier_real != weights.backbone_classification:
        factor = weights.backbone_classification / weights.classifier_real
        maps = [_ScaleGradient.apply(m, factor) for m in maps]
    logit_maps = [_trained_columns(model, model.classify(m), recipe) for m in maps]
    classification = multi_scale_cross_entropy(
        logit_maps, label_maps, ignore_index=ignore_index, reduction=stage.scale_loss
    )
    add("classification", weights.classifier_real, classification)
    if learns and output.latent_log_variance is not None:
        add(
            "kl",
            weights.backbone_kl,
            kl_to_standard_normal(output.latent_mean, output.latent_log_variance, labelled),
        )
    if model.generator is not None and stage.generator is not None:
        _add_generative_terms(add, model, output, labels, labelled, recipe, stage)
    return StepResult(sum(parts), terms)


def _trained_columns(model, logits, recipe: Recipe):
    """A projection is trained over the seen columns alone (SPNet); a learnt head over all."""
    if model.classifier is not None or recipe.supervised:
        return logits
    return logits[:, : len(model.config.seen_ids)]


def _add_generative_terms(add, model, output, labels, labelled, recipe: Recipe, stage: StageRecipe):
    weights, kind = stage.weights, recipe.adversarial_loss
    classes = labels[labelled]
    if classes.numel() == 0:  # a crop without a labelled pixel
        return
    real = to_pixel_list(output.features, labelled).detach()
    latent = to_pixel_list(output.latent, labelled).detach()
    synthetic = model.generator(model.embed_classes(classes[None, None]), latent)
    fixed = synthetic.detach()
    classifier = model.classifier

    add("critic", 1.0, critic_loss(kind, classifier.criticise(real), classifier.criticise(fixed)))
    if kind == "wgan-gp":
        add("gradient_penalty", GRADIENT_PENALTY_WEIGHT, gradient_penalty(classifier.criticise, real, fixed))
    if weights.classifier_synthetic:
        loss = F.cross_entropy(classifier(fixed), classes[None, None])
        add("classification_synthetic", weights.classifier_synthetic, loss)

    with _weights_fixed(classifier):  # the generator is judged by the critic of this moment
        score = classifier.criticise(synthetic)
    add("generator", weights.generator_adversarial, generator_adversarial_loss(kind, score))
    add(
        "content",
        weights.generator_content,
        content_loss(
            recipe.content_loss,
            synthetic,
            real,
            classes,
            model.config.num_labels,
            max_pixels=recipe.mmd_pixels_per_class,
        ),
    )


@contextmanager
def _weights_fixed(module: torch.nn.Module):
    """Within, gradients pass through the module but do not reach its weights."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def synthetic_step(model, stage: StageRecipe) -> StepResult:
    """Cross-entropy on synthetic features of random label maps; touches no image and no backbone."""
    map_shape = (stage.batch_size, stage.synthetic_size, stage.synthetic_size)
    class_ids = draw_label_maps(model, map_shape, stage.unseen_rate)
    loss = model.synthetic_loss(class_ids, train_generator=stage.generator_learns_from_synthetic)
    return StepResult(stage.weights.synthetic_step * loss, {"synthetic": loss.detach()})


def draw_label_maps(model, map_shape: tuple[int, int, int], unseen_rate: float) -> torch.Tensor:
    """Label maps `(B, h, w)` of independent pixels, P(class) ∝ 1 for seen and 1 + `unseen_rate` for unseen classes."""
    config = model.config
    odds = class_odds(config.num_labels, config.unseen_ids, unseen_rate, model.class_embeddings.device)
    return torch.multinomial(odds, math.prod(map_shape), replacement=True).view(map_shape)
