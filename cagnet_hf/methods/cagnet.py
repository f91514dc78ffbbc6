"""CaGNet: a contextual generator makes features of classes, pixel by pixel (pi) or in patches of categories (pa)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator

from ..model.maps_cagnet import mean_cross_entropy, to_pixel_list
from ..patches.bank import PatchFit, open_patch_bank
from ..patches.layouts import PatchSource
from ..patches.pixel_cnn import PatchPixelCNNConfig
from . import register
from .base import Method, RealStep, StepResult
from .losses import (
    content_loss,
    critic_loss,
    generator_adversarial_loss,
    gradient_penalty,
    kl_to_standard_normal,
)
from .options import GeneratingStageRecipe, LossWeights, Options, Recipe, RecipeError

GRADIENT_PENALTY_WEIGHT = 10.0
PATCHES = "patches"  # the folder of the bank, in the folder of the run


class CaGNetWeights(LossWeights):
    """Weights of the losses (CaGNet, sections 3.2 to 3.5)."""

    classifier_synthetic: float = Field(0.0, description="cross-entropy on made features of a real step's pixels")
    backbone_kl: float = Field(100.0, description="distance of the latents from a standard normal, for the network")
    generator_adversarial: float = Field(1.0, description="how badly the critic is deceived, for the generator")
    generator_content: float = Field(50.0, description="distance of made features from real ones, for the generator")
    synthetic_step: float = Field(0.125, description="cross-entropy on made features of a synthetic step")


class CaGNetStage(GeneratingStageRecipe):
    """A stage of real and synthetic steps.

    Steps come in blocks, `real_block` real steps, then `synthetic_block` synthetic ones; a synthetic block of 0 makes
    every step real.
    """

    real_block: int = Field(1, ge=0, description="real steps of a block")
    synthetic_block: int = Field(0, ge=0, description="synthetic steps of a block; 0: every step is real")
    # As the feature map of a crop: 47 at crop 368, stride 8.
    synthetic_size: int | None = Field(None, ge=1, description="side of a synthetic label map in feature cells")
    generator_learns_from_synthetic: bool = Field(False, description="the generator learns in synthetic steps, too")
    weights: CaGNetWeights = CaGNetWeights()

    @model_validator(mode="after")
    def _check_blocks(self) -> "CaGNetStage":
        if self.real_block + self.synthetic_block == 0:
            raise ValueError("real_block and synthetic_block are both 0: the stage has no step")
        if self.synthetic_block and self.synthetic_size is None:
            raise ValueError("synthetic steps need synthetic_size, the side of their label maps in feature cells")
        return self

    def is_synthetic(self, iteration: int) -> bool:
        """Whether `iteration` (from 0) is a synthetic step; real blocks come first."""
        return iteration % (self.real_block + self.synthetic_block) >= self.real_block


class PatchRecipe(Options):
    """The PixelCNN over category patches (CaGNetv2) and the bank of patches sampled from it; see `PatchFit`."""

    epochs: int = Field(10, ge=1, description="passes over the patches")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam")
    batch_size: int = Field(256, ge=1, description="patches of a step")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of the patches that the epoch is chosen on")
    max_patches: int = Field(200_000, ge=2, description="patches to learn from at most")
    unseen_share: float = Field(
        0.5, ge=0, le=1, description="share of the patches in which an unseen class takes a seen one's place"
    )
    bank_size: int = Field(4096, ge=1, description="sampled patches that are kept")
    pure_per_sampled: float = Field(8.0, ge=0, description="patches of one class for each sampled one")


class CaGNetRecipe(Recipe):
    """The recipe of a CaGNet.

    Ablations: `mmd_groups: runs` lets the MMD take runs of equal labels in raster order for classes, as the published
    release does. `generator_latent: noise` gives the generator standard normal noise in real steps, too, instead of
    the pixel's context.

    `objective: paper` is the text of the papers instead of their release: contextual module, network, generator and
    critic are optimised together, so that the losses of the generator reach the latent, too. The text's other choices
    are options: `content_loss: l2`, `weights: {generator_content: 10}`, and `context_variance: free` of the model.
    """

    objective: Literal["released", "paper"] = Field(
        "released", description="paper: the generator's losses teach the contextual module, too; an ablation"
    )

    content_loss: Literal["mmd", "l1", "l2"] = Field("mmd", description="how far made features are from real ones")
    adversarial_loss: Literal["lsgan", "l1", "bce", "wgan", "wgan-gp"] = Field(
        "l1", description="how the critic tells made features from real ones"
    )
    mmd_pixels_per_class: int = Field(256, ge=2, description="pixels of a class in the MMD at most")
    mmd_groups: Literal["classes", "runs"] = Field("classes", description="what the MMD compares; an ablation")
    generator_latent: Literal["context", "noise"] = Field(
        "context", description="what the generator gets beside the class vector in real steps; an ablation"
    )
    patches: PatchRecipe = Field(PatchRecipe(), description="the PixelCNN and its patches (CaGNet(pa))")
    stages: dict[str, CaGNetStage] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_objective(self) -> "CaGNetRecipe":
        if self.objective == "paper" and self.generator_latent == "noise":
            raise ValueError("objective: paper trains the latent that generator_latent: noise leaves out")
        generating = [stage for stage in self.stages.values() if stage.generator is not None]
        if self.objective == "paper" and generating and all(stage.network is None for stage in generating):
            raise ValueError(
                "objective: paper needs a stage that trains network and generator together; in this recipe, the "
                "generator's losses would reach no network"
            )
        return self


@register
class CaGNet(Method):
    """Real steps train network, classifier, critic and generator together; synthetic steps teach the classifier."""

    titles = {"cagnet_pi": "CaGNet(pi)", "cagnet_pa": "CaGNet(pa)"}
    paper = (
        "Gu et al., Context-aware Feature Generation for Zero-shot Semantic Segmentation, ACM MM 2020 "
        "(arXiv 2008.06893); From Pixel to Patch, TMM 2022 (arXiv 2009.12232)"
    )
    parts = {"generator": "contextual"}
    recipe_class = CaGNetRecipe
    prepared = (PATCHES,)

    _patches: PatchSource | None = None

    @classmethod
    def check(cls, name, stage, model):
        super().check(name, stage, model)
        if not stage.synthetic_block:
            return
        if model.generator is None or stage.classifier is None:
            raise RecipeError(
                f"stages.{name}.synthetic_block: synthetic steps teach a classifier features that a generator makes; "
                "the stage has no such pair"
            )
        patch_size = model.config.patch_size
        if stage.synthetic_size % patch_size:
            fitting = max(1, round(stage.synthetic_size / patch_size)) * patch_size
            raise RecipeError(
                f"stages.{name}.synthetic_size: {stage.synthetic_size} is no multiple of patch_size {patch_size}; "
                f"{fitting} is"
            )

    def prepare(self, label_maps: Iterable, folder: Path) -> None:
        """Open the bank of category patches in the run's folder, which the first stage to need the bank makes."""
        if self.model.config.patch_size == 1 or not self.stage.synthetic_block:
            return
        bank, _report = open_patch_bank(
            folder / PATCHES,
            label_maps,
            pixel_cnn_config(self.model.config),
            self.model.class_embeddings,
            patch_fit(self.recipe),
            ignore_index=self.model.config.ignore_index,
            device=self.model.device,
            progress=True,
        )
        self._patches = PatchSource(bank, self.class_odds(), pure_per_sampled=self.recipe.patches.pure_per_sampled)

    def draw_label_maps(self, map_shape: tuple[int, int, int]) -> torch.Tensor:
        """Label maps `(B, h, w)` that features are synthesised for: single pixels, or patches of the bank."""
        return super().draw_label_maps(map_shape) if self._patches is None else self._patches.draw(map_shape)

    def synthetic_step(self) -> StepResult:
        """Cross-entropy on synthetic features of drawn label maps; no image and no backbone takes part."""
        stage = self.stage
        class_ids = self.draw_label_maps((stage.batch_size, stage.synthetic_size, stage.synthetic_size))
        loss = self.model.synthetic_loss(class_ids, train_generator=stage.generator_learns_from_synthetic)
        learners = ("classifier", "generator") if stage.generator_learns_from_synthetic else ("classifier",)
        return StepResult(stage.weights.synthetic_step * loss, {"synthetic": loss.detach()}, learners)

    def add_terms(self, step: RealStep) -> None:
        """The KL term of the latent, and where the generator learns the adversarial and content losses."""
        output = step.output
        if self.stage.network is not None and output.latent_log_variance is not None:
            kl = kl_to_standard_normal(output.latent_mean, output.latent_log_variance, step.labelled)
            step.add("kl", self.stage.weights.backbone_kl, kl)
        if self.model.generator is not None and self.stage.generator is not None:
            self._add_generative_terms(step)

    def _add_generative_terms(self, step: RealStep) -> None:
        recipe, model, weights = self.recipe, self.model, self.stage.weights
        kind, labels, labelled = recipe.adversarial_loss, step.labels, step.labelled
        classes = labels[labelled]
        if classes.numel() == 0:  # a crop without a labelled pixel
            return
        real = to_pixel_list(step.output.features, labelled).detach()
        latent = step.output.latent if recipe.objective == "paper" else step.output.latent.detach()
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

        step.add("critic", 1.0, critic_loss(kind, classifier.criticise(real), classifier.criticise(fixed)))
        if kind == "wgan-gp":
            step.add("gradient_penalty", GRADIENT_PENALTY_WEIGHT, gradient_penalty(classifier.criticise, real, fixed))
        if weights.classifier_synthetic:
            loss = mean_cross_entropy(classifier(made.detach()), truth, ignore_index=model.config.ignore_index)
            step.add("classification_synthetic", weights.classifier_synthetic, loss)

        with weights_fixed(classifier):  # the generator is judged by the critic of this moment
            score = classifier.criticise(synthetic)
        step.add("generator", weights.generator_adversarial, generator_adversarial_loss(kind, score))
        limit = recipe.mmd_pixels_per_class
        if recipe.mmd_groups == "classes":
            present, groups = classes.unique(return_inverse=True)  # no kernel is evaluated for absent classes
        else:
            present, groups, lengths = classes.unique_consecutive(return_inverse=True, return_counts=True)
            limit = min(limit, int(lengths.max()))
        content = content_loss(recipe.content_loss, synthetic, real, groups, len(present), max_pixels=limit)
        step.add("content", weights.generator_content, content)


@contextmanager
def weights_fixed(module: torch.nn.Module) -> Iterator[None]:
    """Within, gradients pass through the module but do not reach its weights."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def pixel_cnn_config(config, **fields) -> PatchPixelCNNConfig:
    """The PixelCNN for the patches of a model, of its classes and patch size."""
    return PatchPixelCNNConfig(
        patch_size=config.patch_size,
        num_classes=config.num_labels,
        unseen_ids=list(config.unseen_ids),
        embedding_size=config.embedding_size,
        **fields,
    )


def patch_fit(recipe: CaGNetRecipe) -> PatchFit:
    """How the recipe fits that PixelCNN."""
    return PatchFit(**recipe.patches.model_dump(exclude={"pure_per_sampled"}), seed=recipe.seed)
