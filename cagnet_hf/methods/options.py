"""Recipes: what to train, as strict data. An unknown key or a wrong type is an error that names the way out.

`Recipe` and `StageRecipe` hold what every method has. A method with options of its own derives its classes from these.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..data.benchmarks import did_you_mean
from ..model.configuration_cagnet import CaGNetConfig
from ..model.image_processing_cagnet import CaGNetImageProcessorKwargs

PARTS = ("network", "classifier", "generator")  # what a stage may have an optimiser for
# What the benchmark says about a model, not the recipe.
_FACTS = {"id2label", "label2id", "num_labels", "seen_ids", "unseen_ids", "dataset_ids", "ignored_dataset_ids"}
_FACTS |= {"class_embedding_source", "weights_from"}


class RecipeError(ValueError):
    """A recipe that cannot be used; the message is one line for the user."""


class ForeignOption(RecipeError):  # noqa: N818 - says what the error is about
    """A recipe has an option that only another method knows."""


class Options(BaseModel):
    """Options that know their keys: an unknown one is refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class OptimizerRecipe(Options):
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
        """The learning rate that `iteration` (from 0) of a stage of `iterations` uses."""
        if iteration < self.warmup:
            return self.lr * (iteration + 1) / self.warmup
        if self.schedule == "poly":
            refreshed = iteration // self.update_every * self.update_every
            return self.lr * (1 - refreshed / iterations) ** self.power
        if self.schedule == "step" and iteration >= self.start:
            return self.lr * self.factor ** ((iteration - self.start) // self.every + 1)
        return self.lr


class LossWeights(Options):
    """Weights of the losses, named as in the published schedules."""

    classifier_real: float = Field(1.0, gt=0)  # cross-entropy on real features, for the classifier
    backbone_classification: float = 0.5  # the same cross-entropy, for the network


class PseudoLabelRecipe(Options):
    """Self-training: the model itself labels ignored pixels with unseen classes, on the fly.

    `top_k` (CaGNet): the highest-ranked unseen class, where it is among the `top_k` highest classes. `confidence`
    (ZS3Net): per image the most confident `share` of the pixels whose highest class is unseen.
    """

    rule: Literal["top_k", "confidence"]
    top_k: int = Field(1, ge=1)
    share: float = Field(0.25, gt=0, le=1)


class AugmentationRecipe(Options):
    """How training images are scaled and flipped."""

    scale_range: tuple[float, float] = (0.5, 1.5)
    flip_probability: float = Field(0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> "AugmentationRecipe":
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(f"scale_range is [smallest, largest] with 0 < smallest <= largest, got [{low}, {high}]")
        return self


class FeatureCacheRecipe(Options):
    """Features of a resting backbone are computed once, and every stage trains on them (see `training/features.py`).

    Stages see whole images at one scale, mirrored with the probability of the augmentation, and crops of the maps.
    """

    folder: str | None = None  # where the features are kept; in the run's folder when None
    cells_per_image: int | None = Field(None, ge=1)  # keep so many cells of an image, drawn at random; all when None


class StageRecipe(Options):
    """A stage: how many iterations, and which parts learn.

    The network is frozen when it has no optimiser. Where `model` differs from the stage before, the network goes on
    and the other parts start anew.
    """

    iterations: int = Field(ge=0)
    batch_size: int = Field(ge=1)
    accumulate: int = Field(1, ge=1)  # batches whose mean gradient is one step, as if each had a process of its own
    crop_size: int = Field(ge=8)
    scales: list[float] = [1.0, 0.5, 0.75]
    scale_loss: Literal["mean", "sum"] = "mean"
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
    def _check_scales(self) -> "StageRecipe":
        if self.scales[:1] != [1.0] or min(self.scales) <= 0:
            raise ValueError(f"scales must start with 1.0 and be greater than 0, got {self.scales}")
        return self

    def is_synthetic(self, iteration: int) -> bool:
        """Whether `iteration` (from 0) needs no image."""
        return False

    def optimizers(self) -> dict[str, OptimizerRecipe]:
        """The optimiser of each part that learns, by the part's name."""
        recipes = {part: getattr(self, part) for part in PARTS}
        return {part: recipe for part, recipe in recipes.items() if recipe is not None}


class PassRecipe(StageRecipe):
    """A stage in closed form: its one iteration is a pass over all training images, each as a whole and as it is
    scored, without augmentation. An interrupted pass starts anew."""

    iterations: int = Field(1, ge=0, le=1)
    batch_size: int = Field(8, ge=1)
    crop_size: int | None = None
    # Pass over images that show a pixel of an unseen class, which the masks tell although training hides it.
    images_without_unseen: bool = False

    @model_validator(mode="after")
    def _check_pass(self) -> "PassRecipe":
        for key in ("crop_size", "augmentation", "pseudo_labels"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key}: a pass takes whole images as they are; leave it out")
        return self


class GeneratingStageRecipe(StageRecipe):
    """A stage of a method that makes features of drawn classes."""

    # A drawn class is a seen one with weight 1 and an unseen one with weight 1 + unseen_rate.
    unseen_rate: float = Field(0.0, ge=0)


class Recipe(Options):
    """Everything that a training run depends on."""

    benchmark: str
    method: str
    seed: int = Field(0, ge=0)
    deterministic: bool = False  # deterministic algorithms only
    split: Literal["test", "tuning"] = "test"  # tuning: held-out seen classes play the unseen ones
    # seen: the benchmark's ignored class called background is learnt from its pixels, as seen classes are
    background: Literal["ignored", "seen"] = "ignored"
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
    in_memory: bool = False  # hold the decoded training images, or their features, on the device; augment there
    feature_cache: FeatureCacheRecipe | None = None  # None: each step runs the backbone
    class_embeddings: str = "bundled"
    backbone_weights: str | None = None
    model: dict[str, Any] = {}
    processor: dict[str, Any] = {}
    augmentation: AugmentationRecipe = AugmentationRecipe()
    stages: dict[str, StageRecipe] = Field(min_length=1)
    num_workers: int = Field(2, ge=0)
    log_every: int = Field(20, ge=1)
    checkpoint_every: int = Field(500, ge=1)
    checkpoints_kept: int = Field(2, ge=1)
    evaluate_every: int = Field(0, ge=0)  # 0: after each stage only
    evaluation_protocol: Literal["full", "paper"] = "full"
    trackers: list[str] = ["tensorboard"]

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
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


def nested_options(options: type[Options], key: str) -> type[Options] | None:
    """The class of the options under a key, also where they may be null or stand by name; None for a plain value."""

    def classes(annotation: Any) -> Iterator[type[Options]]:
        if isinstance(annotation, type) and issubclass(annotation, Options):
            yield annotation
        for part in get_args(annotation):
            yield from classes(part)

    field = options.model_fields.get(key)
    return next(classes(field.annotation), None) if field else None


def known_keys(options: type[Options], location: Sequence[str | int]) -> list[str]:
    """The keys that may stand at a location, such as `("stages", "finetune", "weights")`, of a recipe of a class."""
    for part in location:
        options = nested_options(options, str(part)) or options  # the name of a stage leads no further
    return list(options.model_fields)
