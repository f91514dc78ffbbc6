"""Steps: one iteration's losses. A real step needs images, a synthetic step needs none.

A step returns one total whose single backward gives every part its own gradient: what a part must not learn from is
detached, and the network's share of the classification loss is a scale on its gradient.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..model.maps_cagnet import mean_cross_entropy, resize_labels, to_pixel_list
from ..model.new_classes_cagnet import evaluating
from ..patches.layouts import class_odds
from ..training.recipe import MomentMatchingRecipe, PseudoLabelRecipe, Recipe, StageRecipe
from .losses import (
    content_loss,
    critic_loss,
    generator_adversarial_loss,
    gradient_penalty,
    kl_to_standard_normal,
    moment_matching_loss,
    multi_scale_cross_entropy,
)
from .pseudo_labels import confident_labels, top_k_labels

GRADIENT_PENALTY_WEIGHT = 10.0
LabelMapSource = Callable[[tuple[int, int, int]], torch.Tensor]  # shape (B, h, w) -> class ids


@dataclass
class StepResult:
    """The total to be differentiated, its terms (detached, unweighted) by name, and the parts that learn from it.

    A total of None: the step has updated its parts itself.
    """

    total: torch.Tensor | None
    terms: dict[str, torch.Tensor]
    learners: tuple[str, ...] = ("network", "classifier", "generator")


def updates(
    model, batch: dict[str, torch.Tensor] | None, recipe: Recipe, stage: StageRecipe, label_maps: LabelMapSource
) -> Iterator[StepResult]:
    """The updates of one iteration; each is to be differentiated and stepped before the next is asked for.

    Args:
        model: `CaGNetForSemanticSegmentation` in training mode.
        batch: `pixel_values` `(B, 3, H, W)`, `labels` `(B, H, W)` in model order, 255 = ignored, and `padding`
            `(B, H, W)`, True beyond the image; None in a synthetic step.
        label_maps: Draws the label maps that features are synthesised for.
    """
    if batch is None:
        yield synthetic_step(model, stage, label_maps)
        return
    if stage.pseudo_labels is not None:
        batch = batch | {"labels": label_ignored_pixels(model, batch, stage.pseudo_labels)}
    if stage.moment_matching is not None:
        yield from joint_steps(model, batch, stage.moment_matching, label_maps)
    elif stage.gaussian is not None:
        yield gaussian_step(model, batch, stage)
    else:
        yield real_step(model, batch, recipe, stage)


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
    labels = resize_labels(batch["labels"], maps[0].shape[-2:])
    labelled = labels != ignore_index

    terms, parts = {}, []

    def add(name, weight, value):
        terms[name] = value.detach()
        parts.append(weight * value)

    if learns and weights.classifier_real != weights.backbone_classification:
        factor = weights.backbone_classification / weights.classifier_real
        maps = [_ScaleGradient.apply(m, factor) for m in maps]
    logit_maps = [_trained_columns(model, logits, recipe) for logits in model.classify_scales(maps)]
    label_maps = [resize_labels(batch["labels"], logits.shape[-2:]) for logits in logit_maps]
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
    if model.classifier.learns or recipe.supervised:
        return logits
    return logits[:, : len(model.config.seen_ids)]


def _add_generative_terms(add, model, output, labels, labelled, recipe: Recipe, stage: StageRecipe):
    weights, kind = stage.weights, recipe.adversarial_loss
    classes = labels[labelled]
    if classes.numel() == 0:  # a crop without a labelled pixel
        return
    real = to_pixel_list(output.features, labelled).detach()
    latent = output.latent.detach()
    if recipe.generator_latent == "noise":
        latent = torch.randn_like(latent)
    if model.config.patch_size == 1:  # pixels stand alone: only the labelled ones are made
        truth = classes[None, None]
        made = synthetic = model.generator(model.embed_classes(truth), to_pixel_list(latent, labelled))
    else:  # the class head looks at neighbours: those without a label are made from a zero embedding, as published
        truth = labels
        made = model.generator(model.embed_classes(labels.where(labelled, 0)) * labelled[:, None], latent)
        synthetic = to_pixel_list(made, labelled)
    fixed = synthetic.detach()
    classifier = model.classifier

    add("critic", 1.0, critic_loss(kind, classifier.criticise(real), classifier.criticise(fixed)))
    if kind == "wgan-gp":
        add("gradient_penalty", GRADIENT_PENALTY_WEIGHT, gradient_penalty(classifier.criticise, real, fixed))
    if weights.classifier_synthetic:
        loss = mean_cross_entropy(classifier(made.detach()), truth, ignore_index=model.config.ignore_index)
        add("classification_synthetic", weights.classifier_synthetic, loss)

    with weights_fixed(classifier):  # the generator is judged by the critic of this moment
        score = classifier.criticise(synthetic)
    add("generator", weights.generator_adversarial, generator_adversarial_loss(kind, score))
    limit = recipe.mmd_pixels_per_class
    if recipe.mmd_groups == "classes":
        present, groups = classes.unique(return_inverse=True)  # no kernel is evaluated for absent classes
    else:
        present, groups, lengths = classes.unique_consecutive(return_inverse=True, return_counts=True)
        limit = min(limit, int(lengths.max()))
    content = content_loss(recipe.content_loss, synthetic, real, groups, len(present), max_pixels=limit)
    add("content", weights.generator_content, content)


@contextmanager
def weights_fixed(module: torch.nn.Module):
    """Within, gradients pass through the module but do not reach its weights."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def joint_steps(
    model, batch: dict[str, torch.Tensor], rule: MomentMatchingRecipe, label_maps: LabelMapSource
) -> Iterator[StepResult]:
    """ZS3Net: one update of the generator per image and class, then one of the classifier; the network rests.

    The generator matches the moments of `pairs_per_class` features of that image and class, drawn with replacement.
    The classifier sees real features of labelled pixels, and made ones where an ignored pixel's drawn class is unseen.
    """
    with torch.no_grad():
        features = model.cagnet(batch["pixel_values"]).features
    config, labels = model.config, resize_labels(batch["labels"], features.shape[-2:])
    labelled = labels != config.ignore_index

    classes, groups = _features_by_image_and_class(features, labels, config.num_labels, rule.pairs_per_class)
    for step in range(_most_in_any_process(len(classes), features.device)):
        if step < len(classes):
            made = model.synthesize_features(classes[step].expand(1, 1, rule.pairs_per_class))
            loss = moment_matching_loss(made[0, :, 0].t(), groups[step], bandwidth_scale=rule.bandwidth_scale)
            yield StepResult(loss, {"moment_matching": loss.detach()}, ("generator",))
        else:  # another process has more classes to learn from
            yield StepResult(_zero(model.generator), {}, ("generator",))

    with torch.no_grad():
        drawn = label_maps(tuple(labels.shape))
        replaced = ~labelled & (drawn >= len(config.seen_ids))
        truth = torch.cat([labels[labelled], drawn[replaced]])
        inputs = to_pixel_list(features, labelled)
        if replaced.any():
            inputs = torch.cat([inputs, model.synthesize_features(drawn[replaced][None, None])], dim=-1)
    if truth.numel() == 0:
        yield StepResult(_zero(model.classifier), {}, ("classifier",))
        return
    class_weights = torch.ones(config.num_labels, device=features.device)
    class_weights[list(config.unseen_ids)] = rule.unseen_class_weight
    loss = mean_cross_entropy(
        model.classify(inputs), truth[None, None], ignore_index=config.ignore_index, class_weights=class_weights
    )
    yield StepResult(loss, {"classification": loss.detach()}, ("classifier",))


@torch.no_grad()
def gaussian_step(model, batch: dict[str, torch.Tensor], stage: StageRecipe) -> StepResult:
    """The Gaussian generator observes the features of labelled pixels; its Bayes rule becomes the classifier.

    The classification term is the cross-entropy of these pixels before they were observed. The network rests.
    """
    config, generator, rule = model.config, model.generator, stage.gaussian
    features = model.cagnet(batch["pixel_values"]).features
    labels = resize_labels(batch["labels"], features.shape[-2:])
    labelled = labels != config.ignore_index
    loss = mean_cross_entropy(model.classify(features), labels, ignore_index=config.ignore_index)
    odds = class_odds(config.num_labels, config.unseen_ids, stage.unseen_rate, features.device)
    with torch.autocast(features.device.type, enabled=False):  # halves would round statistics of many batches
        generator.observe(features.permute(0, 2, 3, 1)[labelled], labels[labelled])
        generator.fit(model.class_embeddings, **rule.model_dump())
        weights, biases = generator.bayes_rule(model.class_embeddings, odds.log())
    model.classifier.weight.copy_(weights[:, :, None, None])
    model.classifier.bias.copy_(biases)
    return StepResult(None, {"classification": loss}, ())


def _features_by_image_and_class(features, labels, num_classes: int, count: int):
    """`count` features `(G, count, D)` of every class of every image, drawn with replacement; the classes `(G,)`."""
    one_hot = F.one_hot(labels.flatten(1).clamp(max=num_classes), num_classes + 1)[..., :num_classes]  # (B, P, N)
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


@torch.no_grad()
def label_ignored_pixels(model, batch: dict[str, torch.Tensor], rule: PseudoLabelRecipe) -> torch.Tensor:
    """The batch's labels `(B, H, W)` with unseen classes where they were ignored and the model, as it is, sees them.

    Decided per cell of the feature map; padding stays ignored.
    """
    config, labels = model.config, batch["labels"]
    with evaluating(model):
        logits = model(batch["pixel_values"]).logits
    cells, padding = (resize_labels(batch[key], logits.shape[-2:]) for key in ("labels", "padding"))
    options = {"unseen_ids": config.unseen_ids, "ignore_index": config.ignore_index}
    if rule.rule == "top_k":
        cells = top_k_labels(logits, cells, padding, k=rule.top_k, **options)
    else:
        cells = confident_labels(logits, cells, padding, share=rule.share, **options)
    guesses = resize_labels(cells, labels.shape[-2:])
    torch.clear_autocast_cache()  # weights cast without gradients must not serve the step that follows
    unseen = (guesses >= len(config.seen_ids)) & (guesses != config.ignore_index)
    return torch.where((labels == config.ignore_index) & ~batch["padding"] & unseen, guesses, labels)


def synthetic_step(model, stage: StageRecipe, label_maps: LabelMapSource) -> StepResult:
    """Cross-entropy on synthetic features of drawn label maps; touches no image and no backbone."""
    class_ids = label_maps((stage.batch_size, stage.synthetic_size, stage.synthetic_size))
    loss = model.synthetic_loss(class_ids, train_generator=stage.generator_learns_from_synthetic)
    learners = ("classifier", "generator") if stage.generator_learns_from_synthetic else ("classifier",)
    return StepResult(stage.weights.synthetic_step * loss, {"synthetic": loss.detach()}, learners)


def draw_label_maps(model, map_shape: tuple[int, int, int], *, unseen_rate: float) -> torch.Tensor:
    """Label maps `(B, h, w)` of independent pixels, P(class) ∝ 1 for seen and 1 + `unseen_rate` for unseen classes."""
    config = model.config
    odds = class_odds(config.num_labels, config.unseen_ids, unseen_rate, model.class_embeddings.device)
    return torch.multinomial(odds, math.prod(map_shape), replacement=True).view(map_shape)
