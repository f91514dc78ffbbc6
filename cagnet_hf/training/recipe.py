"""Recipes: what to train, as strict data. An unknown key or a wrong type is an error that names the way out.

A recipe file may `include` others (paths relative to itself); later files override earlier ones, key by key. The name
`BENCHMARK/METHOD` joins three of them: the benchmark's facts, the benchmark's schedule for the method, the method.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..benchmarks import did_you_mean
from ..configuration_cagnet import CaGNetConfig
from ..image_processing_cagnet import CaGNetImageProcessorKwargs

# What the benchmark says, not the recipe.
_FACTS = {"id2label", "label2id", "num_labels", "seen_ids", "unseen_ids", "dataset_ids", "ignored_dataset_ids"}
_FACTS |= {"class_embedding_source", "weights_from"}
RECIPES_DIR = Path(__file__).resolve().parents[2] / "scripts" / "recipes"
METHODS = "methods"
DEFAULT_METHOD = "cagnet_pi"  # `--recipe scenes` means scenes/cagnet_pi


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


def load_recipe(name_or_path: str, overrides: list[str] = ()) -> Recipe:
    """Read a recipe by name (`scenes`, `pascal_voc_edge/cagnet_pi`) or file, with `key=value` overrides.

    Keys are dotted (`stages.finetune.iterations=100`), values YAML.

    Raises:
        RecipeError: One line naming the file, the key and the nearest known key.
    """
    name, tree = _find(name_or_path)
    ends = [override for override in overrides if override.startswith("until=")]
    for override in ends:
        tree = _overridden(tree, override)
    _keep_stages(name, tree, overrides)
    for override in overrides:
        if override not in ends:
            tree = _overridden(tree, override)
    _drop_null_stages(tree)
    _leave_the_last_model(tree)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"{name}: {_first_problem(error)}") from None


def _find(name_or_path: str) -> tuple[str, dict]:
    """(what to call it, its keys) of a file or of the parts that a name joins."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path.name, _read(path)
    known = recipe_names()
    for name in (name_or_path, f"{name_or_path}/{DEFAULT_METHOD}"):
        if name in known:
            return name, _join(*name.split("/"))
    hint = did_you_mean(name_or_path, known) or f"; known: {', '.join(known)}"
    raise RecipeError(f"no recipe {name_or_path!r}{hint}")


def _join(benchmark: str, method_name: str) -> dict:
    method = _read(RECIPES_DIR / METHODS / f"{method_name}.yaml")
    schedule = _read(RECIPES_DIR / benchmark / f"{method.pop('schedule')}.yaml")
    return _merged(_merged(_read(RECIPES_DIR / benchmark / "benchmark.yaml"), schedule), method)


def stage_of_key(override: str) -> str | None:
    """The stage that an override `stages.STAGE.KEY=value` or `stages.STAGE=value` speaks of."""
    parts = override.partition("=")[0].split(".")
    return parts[1] if parts[0] == "stages" and len(parts) > 1 else None


def _keep_stages(name: str, tree: dict, overrides: list[str]) -> None:
    """`until: STAGE` drops the stages that a schedule has beyond it; an override may only speak of what is left."""
    _drop_null_stages(tree)
    until, stages = tree.pop("until", None), tree.get("stages")
    if not isinstance(stages, dict):
        return
    names = list(stages)
    if until is not None and until not in names:
        raise RecipeError(f"{name}: until={until} is no stage{did_you_mean(until, names)}; stages: {', '.join(names)}")
    kept = names if until is None else names[: names.index(until) + 1]
    tree["stages"] = {stage: stages[stage] for stage in kept}
    for override in overrides:
        stage = stage_of_key(override)
        if stage is not None and stage not in kept:
            raise RecipeError(
                f"{name}: {override!r}: no stage {stage!r} in this run{did_you_mean(stage, kept)}; "
                f"stages: {', '.join(kept)}"
            )


def _drop_null_stages(tree: dict) -> None:
    """`STAGE: null` leaves out a stage that an included file has."""
    if isinstance(tree.get("stages"), dict):
        tree["stages"] = {name: stage for name, stage in tree["stages"].items() if stage is not None}


def _leave_the_last_model(tree: dict) -> None:
    """The recipe's model is that of its last stage, whichever stages were left out."""
    stages, model = tree.get("stages"), tree.get("model", {})
    trees = [model, *(stages.values() if isinstance(stages, dict) else [None])]
    if len(trees) < 2 or not all(isinstance(part, dict) and isinstance(part.get("model", {}), dict) for part in trees):
        return  # what is wrong is found where the recipe is read
    last = model | trees[-1].get("model", {})
    if last == model:
        return
    for name, stage in stages.items():
        own = model | stage.get("model", {})
        stages[name] = stage | {"model": {key: value for key, value in own.items() if last.get(key) != value}}
    tree["model"] = last


def recipe_names() -> list[str]:
    """Every `BENCHMARK/METHOD` whose benchmark has the method's schedule."""
    methods = {path.stem: _read(path)["schedule"] for path in sorted((RECIPES_DIR / METHODS).glob("*.yaml"))}
    benchmarks = sorted(path.parent.name for path in RECIPES_DIR.glob("*/benchmark.yaml"))
    return [
        f"{benchmark}/{method}"
        for benchmark in benchmarks
        for method, schedule in methods.items()
        if (RECIPES_DIR / benchmark / f"{schedule}.yaml").is_file()
    ]


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


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict:
    if path in seen:
        raise RecipeError(f"{path}: includes itself")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values")
    merged: dict = {}
    includes = tree.pop("include", [])
    if not isinstance(includes, list) or not all(isinstance(include, str) for include in includes):
        raise RecipeError(f"{path}: include is a list of files, got {includes!r}")
    for include in includes:
        merged = _merged(merged, _read((path.parent / include).resolve(), (*seen, path)))
    return _merged(merged, tree)


def _merged(base: dict, over: dict) -> dict:
    """A new tree: aliases in a file share values, not what is merged into them."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = _merged(base[key], value) if both else value
    return result


def _overridden(tree: dict, override: str) -> dict:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"{override!r} is no override: write key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(f"{override!r}: the value is not YAML") from None
    *parents, leaf = key.split(".")
    result = dict(tree)
    node = result
    for part in parents:
        child = node.get(part, {})
        if not isinstance(child, dict):
            raise RecipeError(f"{override!r}: {part!r} holds a value, not keys")
        node[part] = dict(child)
        node = node[part]
    node[leaf] = value
    return result


def _first_problem(error: ValidationError) -> str:
    problems = error.errors()
    # A misspelt key is also a missing one; its own name says more.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    where = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where!r}{did_you_mean(problem['loc'][-1], _keys_at(problem['loc'][:-1]))}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = f", got {given!r}" if where and not isinstance(given, dict) else ""
    return f"{where}: {message}{shown}" if where else message


def _keys_at(location: tuple) -> list[str]:
    """Known keys of the recipe node at `location`."""
    owners = {"stages": StageRecipe, "weights": LossWeights, "augmentation": AugmentationRecipe}
    owners |= {"patches": PatchRecipe, "moment_matching": MomentMatchingRecipe, "pseudo_labels": PseudoLabelRecipe}
    owners["gaussian"] = GaussianRecipe
    owners |= dict.fromkeys(("network", "classifier", "generator"), OptimizerRecipe)
    owner = Recipe
    for part in location:
        owner = owners.get(part, owner)
    return list(owner.model_fields)
