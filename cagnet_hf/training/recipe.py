"""Recipes: what to train, as strict data. An unknown key or a wrong type is an error that names the way out."""

from collections.abc import Sequence
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..data.benchmarks import did_you_mean
from ..model.configuration_cagnet import CaGNetConfig
from ..model.image_processing_cagnet import CaGNetImageProcessorKwargs

# What the benchmark says, not the recipe.
_FACTS = {"id2label", "label2id", "num_labels", "seen_ids", "unseen_ids", "dataset_ids", "ignored_dataset_ids"}
_FACTS |= {"class_embedding_source", "weights_from"}


class RecipeError(ValueError):
    """A recipe that cannot be used; the message is one line for the user."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class OptimizerRecipe(_Strict):
    """One optimiser and its learning-rate schedule, a pure function of the iteration.

    `poly`: lr · (1 − i / iterations)^power, refreshed every `update_every` iterations. `step`: lr · factor^k with
    k = (i − start) // every + 1 from iteration `start` on. `constant`: lr.
    """

    optimizer: Literal["sgd", "adam", "adamw"]
    lr: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["poly", "step", "constant"] = "constant"
    power: float = 0.9
    update_every: int = Field(1, ge=1)
    start: int = 0
    every: int = Field(1, ge=1)
    factor: float = 1.0
    warmup: int = Field(0, ge=0)
    # Learning-rate factors of the network's parts; 0 leaves a part untrained (selector: 0 is the release's fault).
    multipliers: dict[Literal["backbone", "context", "selector", "aspp_weights", "aspp_biases"], float] = {}

    def lr_at(self, iteration: int, iterations: int) -> float:
        """Learning rate used by `iteration` (from 0) of a stage of `iterations`."""
        if iteration < self.warmup:
            return self.lr * (iteration + 1) / self.warmup
        if self.schedule == "poly":
            refreshed = iteration // self.update_every * self.update_every
            return self.lr * (1 - refreshed / iterations) ** self.power
        if self.schedule == "step" and iteration >= self.start:
            return self.lr * self.factor ** ((iteration - self.start) // self.every + 1)
        return self.lr


class LossWeights(_Strict):
    """Weights of the losses (CaGNet, sections 3.2 to 3.5), named as in the published schedules."""

    classifier_real: float = Field(1.0, gt=0)  # cross-entropy on real features, for the classifier
    classifier_synthetic: float = 0.0  # cross-entropy on synthetic features of the pixels of a real step
    backbone_classification: float = 0.5  # the same cross-entropy, for the network
    backbone_kl: float = 100.0
    generator_adversarial: float = 1.0
    generator_content: float = 50.0
    synthetic_step: float = 0.125


class MomentMatchingRecipe(_Strict):
    """Joint steps of ZS3Net: the generator is fitted to the features of each image and class, then the classifier
    learns from real features of seen pixels and made features of unseen ones."""

    pairs_per_class: int = Field(128, ge=1)
    unseen_class_weight: float = Field(100.0, gt=0)
    bandwidth_scale: float = Field(1.0, gt=0)  # factor on the published kernels' bandwidths


class GaussianRecipe(_Strict):
    """Real steps that observe features and refit a Gaussian generator; its Bayes rule becomes the classifier, with
    prior odds of 1 for seen classes and 1 + `unseen_rate` for unseen ones. See `GaussianGenerator.fit`."""

    ridge: float = Field(0.1, gt=0)
    shrinkage: float = Field(0.05, ge=0, le=1)
    covariance_scale: float = Field(1.0, gt=0)


class PseudoLabelRecipe(_Strict):
    """Self-training: the model itself labels ignored pixels with unseen classes, on the fly.

    `top_k` (CaGNet): the highest-ranked unseen class, where it is among the `top_k` highest classes. `confidence`
    (ZS3Net): per image the most confident `share` of the pixels whose highest class is unseen.
    """

    rule: Literal["top_k", "confidence"]
    top_k: int = Field(1, ge=1)
    share: float = Field(0.25, gt=0, le=1)


class AugmentationRecipe(_Strict):
    scale_range: tuple[float, float] = (0.5, 1.5)
    flip_probability: float = Field(0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self):
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(f"scale_range is [smallest, largest] with 0 < smallest <= largest, got [{low}, {high}]")
        return self


class StageRecipe(_Strict):
    """A stage: how many iterations of which steps, and who learns.

    Steps come in blocks, `real_block` real steps, then `synthetic_block` synthetic ones; a synthetic block of 0 makes
    every step real. The network is frozen when it has no optimiser. Where `model` differs from the stage before, the
    network goes on and the other parts start anew.
    """

    iterations: int = Field(ge=0)
    batch_size: int = Field(ge=1)
    accumulate: int = Field(1, ge=1)  # batches whose mean gradient is one step, as if each had a process of its own
    crop_size: int = Field(ge=8)
    scales: list[float] = [1.0, 0.5, 0.75]
    scale_loss: Literal["mean", "sum"] = "mean"
    real_block: int = Field(1, ge=0)
    synthetic_block: int = Field(0, ge=0)
    # A synthetic label map draws seen classes with weight 1 and unseen ones with weight 1 + unseen_rate.
    unseen_rate: float = Field(0.0, ge=0)
    # Side of a synthetic label map in feature cells (as the feature map of a crop: 47 at crop 368, stride 8).
    synthetic_size: int | None = Field(None, ge=1)
    generator_learns_from_synthetic: bool = False
    moment_matching: MomentMatchingRecipe | None = None
    gaussian: GaussianRecipe | None = None
    pseudo_labels: PseudoLabelRecipe | None = None
    augmentation: AugmentationRecipe | None = None  # the run's when None
    model: dict[str, Any] = {}  # what differs from the recipe's model, which is what the last stage leaves
    # Parts that start this stage from new weights.
    reinitialize: list[Literal["classifier", "generator"]] = []
    weights: LossWeights = LossWeights()
    network: OptimizerRecipe | None = None
    classifier: OptimizerRecipe | None = None
    generator: OptimizerRecipe | None = None

    @model_validator(mode="after")
    def _check(self):
        if self.real_block + self.synthetic_block == 0:
            raise ValueError("real_block and synthetic_block are both 0: the stage has no step")
        if self.synthetic_block and self.synthetic_size is None:
            raise ValueError("synthetic steps need synthetic_size, the side of their label maps in feature cells")
        if self.scales[:1] != [1.0] or min(self.scales) <= 0:
            raise ValueError(f"scales must start with 1.0 and be greater than 0, got {self.scales}")
        return self

    def is_synthetic(self, iteration: int) -> bool:
        """Whether `iteration` (from 0) is a synthetic step; real blocks come first."""
        return iteration % (self.real_block + self.synthetic_block) >= self.real_block


class PatchRecipe(_Strict):
    """The PixelCNN over category patches (CaGNetv2) and the bank of patches sampled from it; see `PatchFit`."""

    epochs: int = Field(10, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    batch_size: int = Field(256, ge=1)
    held_out: float = Field(0.1, gt=0, lt=1)
    max_patches: int = Field(200_000, ge=2)
    unseen_share: float = Field(0.5, ge=0, le=1)
    bank_size: int = Field(4096, ge=1)
    pure_per_sampled: float = Field(8.0, ge=0)


class Recipe(_Strict):
    """Everything a training run depends on."""

    benchmark: str
    method: str
    seed: int = Field(0, ge=0)
    deterministic: bool = False  # deterministic algorithms only
    split: Literal["test", "tuning"] = "test"  # tuning: held-out seen classes play the unseen ones
    supervised: bool = False  # the upper bound: labels of unseen classes are shown in training
    dataset: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    image_column: str = "image"
    mask_column: str = "mask"
    # For a dataset of other ids than the benchmark's: its id -> class, by name or id; null: unlabelled.
    label_map: dict[int, int | str | None] = {}
    streaming: bool = False  # read rows as they are needed
    shuffle_buffer: int = Field(1000, ge=1)  # streamed rows that the order is drawn from
    in_memory: bool = False  # hold the decoded training images on the device, augment there
    class_embeddings: str = "bundled"
    backbone_weights: str | None = None
    model: dict[str, Any] = {}
    processor: dict[str, Any] = {}
    augmentation: AugmentationRecipe = AugmentationRecipe()
    content_loss: Literal["mmd", "l1", "l2"] = "mmd"
    adversarial_loss: Literal["lsgan", "l1", "bce", "wgan", "wgan-gp"] = "l1"
    mmd_pixels_per_class: int = Field(256, ge=2)
    # Ablations. `runs`: the MMD takes runs of equal labels in raster order for classes, as the published release does.
    # `noise`: in real steps, too, the generator's latent is standard normal noise instead of the pixel's context.
    mmd_groups: Literal["classes", "runs"] = "classes"
    generator_latent: Literal["context", "noise"] = "context"
    patches: PatchRecipe = PatchRecipe()
    stages: dict[str, StageRecipe] = Field(min_length=1)
    num_workers: int = Field(2, ge=0)
    log_every: int = Field(20, ge=1)
    checkpoint_every: int = Field(500, ge=1)
    checkpoints_kept: int = Field(2, ge=1)
    evaluate_every: int = Field(0, ge=0)  # 0: after each stage only
    evaluation_protocol: Literal["full", "paper"] = "full"
    trackers: list[str] = ["tensorboard"]

    @model_validator(mode="after")
    def _check(self):
        if self.streaming and self.in_memory:
            raise ValueError("streaming and in_memory exclude each other: leave out one")
        fields = set(CaGNetConfig.__dataclass_fields__) - _FACTS
        sections = {f"stages.{name}.model": (stage.model, fields) for name, stage in self.stages.items()}
        sections["model"] = (self.model, fields)
        sections["processor"] = (self.processor, get_type_hints(CaGNetImageProcessorKwargs))
        for section, (given, known) in sections.items():
            for key in given:
                if key not in known:
                    raise ValueError(f"unknown key '{section}.{key}'{did_you_mean(key, known)}")
        for name, stage in self.stages.items():
            for key in stage.model:
                if key not in self.model:
                    raise ValueError(f"stages.{name}.model.{key}: say in model, too, what it is in the other stages")
        return self

    def model_of(self, stage: str) -> dict[str, Any]:
        """Fields of the model that a stage trains."""
        return self.model | self.stages[stage].model

    def first_stages(self, names: Sequence[str]) -> "Recipe":
        """The recipe of these stages alone."""
        model = self.model_of(names[-1])
        stages = {}
        for name in names:
            other = {key: value for key, value in self.model_of(name).items() if model.get(key) != value}
            stages[name] = self.stages[name].model_copy(update={"model": other})
        return self.model_copy(update={"model": model, "stages": stages})


def changed_keys(old: Recipe, new: Recipe) -> list[str]:
    """Dotted keys whose values differ between two recipes."""

    def flatten(value, prefix=""):
        if isinstance(value, dict):
            for key, child in value.items():
                yield from flatten(child, f"{prefix}.{key}" if prefix else str(key))
        else:
            yield prefix, value

    a, b = (dict(flatten(recipe.model_dump(mode="json"))) for recipe in (old, new))
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
