"""Recipes: what to train, as strict data. An unknown key or a wrong type is an error that names the way out.

`Recipe` and `StageRecipe` hold what every method has. A method with options of its own derives its classes from these.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..data.names import nearest_keys

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
    lr: float = Field(gt=0, description="learning rate; where its schedule starts")
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["poly", "step", "constant"] = Field("constant", description="how the learning rate falls")
    power: float = Field(0.9, description="of the schedule poly: lr * (1 - i / iterations) ^ power")
    update_every: int = Field(1, ge=1, description="of the schedule poly: iterations between two values")
    start: int = Field(0, description="of the schedule step: the iteration from which the learning rate falls")
    every: int = Field(1, ge=1, description="of the schedule step: iterations between two falls")
    factor: float = Field(1.0, description="of the schedule step: what each fall multiplies the learning rate by")
    warmup: int = Field(0, ge=0, description="iterations in which the learning rate rises to its value")
    # selector: 0 is the release's fault.
    multipliers: dict[Literal["backbone", "context", "selector", "aspp_weights", "aspp_biases"], float] = Field(
        {}, description="learning-rate factors of the network's parts; 0 leaves a part untrained"
    )

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

    classifier_real: float = Field(1.0, gt=0, description="cross-entropy on real features, for the classifier")
    backbone_classification: float = Field(0.5, description="the same cross-entropy, for the network")


class PseudoLabelRecipe(Options):
    """Self-training: the model itself labels ignored pixels with unseen classes, on the fly.

    `top_k` (CaGNet): the highest-ranked unseen class, where it is among the `top_k` highest classes. `confidence`
    (ZS3Net): per image the most confident `share` of the pixels whose highest class is unseen.
    """

    rule: Literal["top_k", "confidence"] = Field(description="which unlabelled pixels get labels of unseen classes")
    top_k: int = Field(1, ge=1, description="of the rule top_k: the unseen class is among so many highest classes")
    share: float = Field(0.25, gt=0, le=1, description="of the rule confidence: the share of the pixels that is kept")


class AugmentationRecipe(Options):
    """How training images are scaled and flipped."""

    scale_range: tuple[float, float] = Field((0.5, 1.5), description="smallest and largest factor on the size")
    flip_probability: float = Field(0.5, ge=0, le=1, description="how often an image is mirrored")

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

    folder: str | None = Field(None, description="where the features are kept; null: beside the run")
    cells_per_image: int | None = Field(
        None, ge=1, description="keep so many cells of an image, drawn at random; all when null"
    )


class StageRecipe(Options):
    """A stage: how many iterations, and which parts learn.

    The network is frozen when it has no optimiser. Where `model` differs from the stage before, the network goes on
    and the other parts start anew.
    """

    iterations: int = Field(ge=0, description="how many updates the stage makes")
    batch_size: int = Field(ge=1, description="images of a batch, in each process")
    # As if each batch had a process of its own.
    accumulate: int = Field(1, ge=1, description="batches whose mean gradient is one step")
    crop_size: int = Field(ge=8, description="side of the square that is cut from a training image, in pixels")
    scales: list[float] = Field([1.0, 0.5, 0.75], description="sizes of the crop that the network sees; 1.0 first")
    scale_loss: Literal["mean", "sum"] = Field("mean", description="how the losses of the scales are joined")
    pseudo_labels: PseudoLabelRecipe | None = Field(None, description="self-training; none when null")
    augmentation: AugmentationRecipe | None = Field(None, description="the recipe's when null")
    # The recipe's model is what the last stage leaves.
    model: dict[str, Any] = Field({}, description="fields of the model that differ from the recipe's in this stage")
    reinitialize: list[Literal["classifier", "generator"]] = Field(
        [], description="parts that start this stage from new weights"
    )
    weights: LossWeights = Field(LossWeights(), description="weights of the losses")
    network: OptimizerRecipe | None = Field(None, description="optimiser of the network; null: the network rests")
    classifier: OptimizerRecipe | None = Field(None, description="optimiser of the classifier; null: none")
    generator: OptimizerRecipe | None = Field(None, description="optimiser of the generator; null: none")

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
    # The masks tell which, although training hides it.
    images_without_unseen: bool = Field(
        False, description="leave out training images that show a pixel of an unseen class"
    )

    @model_validator(mode="after")
    def _check_pass(self) -> "PassRecipe":
        for key in ("crop_size", "augmentation", "pseudo_labels"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key}: a pass takes whole images as they are; leave it out")
        return self


class KnownNamesRecipe(Options):
    """What the backbone's image classifier knows by name, and which of it may be used."""

    # See `load_image_classifier_head`.
    head: str = Field("package", description="where the head of the image classifier is from")
    known_embeddings: str = Field("bundled", description="vectors of the names that the image classifier knows")
    # The file that comes with the recipes of a benchmark, `unseen_synsets.txt`, is found by its name.
    without: list[str] | str = Field(
        [], description="known classes to leave out: names, synset ids, or a text file of them"
    )
    tau: float | None = Field(None, gt=0, description="how far a name reaches; null: an average over several")


class AnchorRecipe(KnownNamesRecipe):
    """How the anchor of a generator is fitted, before the first iteration of a stage in which the network rests: one
    pass over whole images."""

    ridge: float = Field(0.1, gt=0, description="of the anchor 'ridge': how far class means are drawn together")


class GeneratingStageRecipe(StageRecipe):
    """A stage of a method that makes features of drawn classes."""

    unseen_rate: float = Field(
        0.0, ge=0, description="a drawn class is a seen one with weight 1, an unseen one with weight 1 + unseen_rate"
    )
    anchor: AnchorRecipe | None = Field(None, description="fit the anchor of the generator first")


class Recipe(Options):
    """Everything that a training run depends on."""

    benchmark: str = Field(description="whose classes: a published benchmark, a prepared folder, or a class table")
    method: str = Field(description="the row of the tables that is trained")
    seed: int = Field(0, ge=0, description="random numbers follow from it; on scenes the images, too")
    deterministic: bool = Field(False, description="deterministic algorithms only: the same run gives the same bits")
    split: Literal["test", "tuning"] = Field(
        "test", description="tuning: held-out seen classes play the unseen ones, for choosing rates and calibrations"
    )
    background: Literal["ignored", "seen"] = Field(
        "ignored",
        description="seen: the ignored class called background is learnt from its pixels, as seen classes are",
    )
    supervised: bool = Field(False, description="the upper bound: labels of unseen classes are shown in training")
    dataset: str | None = Field(None, description="a prepared folder or a Hub id; the benchmark's own when null")
    train_split: str = Field("train", description="the split of the dataset to learn from")
    test_split: str = Field("test", description="the split of the dataset to score on")
    image_column: str = Field("image", description="what the dataset calls the column of images")
    mask_column: str = Field("mask", description="what the dataset calls the column of masks")
    label_map: dict[int, int | str | None] = Field(
        {}, description="for a dataset of other ids: its id -> class, by name or id; null: unlabelled"
    )
    streaming: bool = Field(False, description="read rows as they are needed, without downloading the dataset first")
    shuffle_buffer: int = Field(1000, ge=1, description="streamed rows that the order is drawn from")
    in_memory: bool = Field(
        False, description="hold the decoded training images, or their features, on the device; augment there"
    )
    feature_cache: FeatureCacheRecipe | None = Field(
        None, description="{}: compute the features of a resting backbone once; null: in every step"
    )
    class_embeddings: str = Field("bundled", description="vectors of the classes: bundled, or tables, with commas")
    backbone_weights: str | None = Field(None, description="the checkpoint to start from; new weights when null")
    model: dict[str, Any] = Field({}, description="fields of CaGNetConfig")
    processor: dict[str, Any] = Field({}, description="arguments of CaGNetImageProcessor, such as size")
    augmentation: AugmentationRecipe = Field(
        AugmentationRecipe(), description="how training images are scaled and flipped"
    )
    stages: dict[str, StageRecipe] = Field(min_length=1, description="what is trained, one after the other, by name")
    num_workers: int | None = Field(
        None, ge=0, description="processes that prepare batches; null: 1, beside a GPU one for each core, at most 8"
    )
    log_every: int = Field(20, ge=1, description="iterations between two entries of the log")
    checkpoint_every: int = Field(500, ge=1, description="iterations between two checkpoints")
    checkpoints_kept: int = Field(2, ge=1, description="how many checkpoints are left on disk")
    evaluate_every: int = Field(0, ge=0, description="iterations between two evaluations; 0: after each stage only")
    evaluation_protocol: Literal["full", "paper"] = Field(
        "full", description="full: images at their own sizes; paper: warped to a square, at feature resolution"
    )
    trackers: list[str] = Field(["tensorboard"], description="who else gets the log, such as wandb; [] for nobody")

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        if self.streaming and self.in_memory:
            raise ValueError("streaming and in_memory exclude each other: leave out one")
        sections = {f"stages.{name}.model": (stage.model, "model") for name, stage in self.stages.items()}
        sections |= {"model": (self.model, "model"), "processor": (self.processor, "processor")}
        for section, (given, kind) in sections.items():
            for key in given:
                if key not in free_keys()[kind]:
                    keys = ((f"{section}.{known}", "") for known in free_keys()[kind])
                    raise ValueError(f"unknown key '{section}.{key}'{nearest_keys(f'{section}.{key}', keys)}")
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


WITHOUT_EFFECT = ("num_workers",)  # what a resumed run may have otherwise: batches do not depend on who prepares them


def changed_keys(old: Recipe, new: Recipe) -> list[str]:
    """Dotted keys whose values differ between two recipes, but for those that change no number (`WITHOUT_EFFECT`)."""

    def flatten(value, prefix=""):
        if isinstance(value, dict):
            for key, child in value.items():
                yield from flatten(child, f"{prefix}.{key}" if prefix else str(key))
        else:
            yield prefix, value

    a, b = (dict(flatten(recipe.model_dump(mode="json"))) for recipe in (old, new))
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key) and key not in WITHOUT_EFFECT)


def nested_options(options: type[Options], key: str) -> type[Options] | None:
    """The class of the options under a key, also where they may be null or stand by name; None for a plain value."""

    def classes(annotation: Any) -> Iterator[type[Options]]:
        if isinstance(annotation, type) and issubclass(annotation, Options):
            yield annotation
        for part in get_args(annotation):
            yield from classes(part)

    field = options.model_fields.get(key)
    return next(classes(field.annotation), None) if field else None


@cache
def free_keys() -> dict[str, dict[str, Any]]:
    """What the sections `model` and `processor` of a recipe may hold: key -> default."""
    from ..model.configuration_cagnet import CaGNetConfig  # here: transformers takes seconds
    from ..model.image_processing_cagnet import CaGNetImageProcessorKwargs

    fields = CaGNetConfig.__dataclass_fields__
    return {
        "model": {name: field.default for name, field in fields.items() if name not in _FACTS},
        "processor": dict.fromkeys(get_type_hints(CaGNetImageProcessorKwargs)),
    }


def described_keys(options: type[Options], tree: Mapping[str, Any], parents: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, meaning) of all keys that a recipe may set, but for those of sections that its tree leaves out."""
    for key, field in options.model_fields.items():
        described = (kind.model_fields[key].description for kind in options.__mro__ if key in _fields_of(kind))
        yield parents + key, next(filter(None, described), "")
        nested = nested_options(options, key)
        value = tree.get(key, field.get_default(call_default_factory=True))
        value = {} if isinstance(value, Options) else value
        sections = {key: value}
        if get_origin(field.annotation) is dict and isinstance(value, dict):
            sections = {f"{key}.{name}": section for name, section in value.items()}
        for name, section in sections.items() if nested else ():
            if isinstance(section, dict):
                yield from described_keys(nested, section, f"{parents}{name}.")


def _fields_of(kind: type) -> dict[str, Any]:
    return kind.model_fields if issubclass(kind, Options) else {}
