"""From a recipe to its parts: benchmark, data, embeddings, image processor, model, label maps of synthetic steps."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError

from ..data.benchmarks import Benchmark, LabelMap, load_benchmark
from ..data.masks import MaskReader
from ..data.rows import StreamedRows
from ..data.scenes import scenes_class_embeddings
from ..data.sources import open_dataset
from ..methods.steps import LabelMapSource, draw_label_maps
from ..model.configuration_cagnet import CaGNetConfig
from ..model.image_processing_cagnet import CaGNetImageProcessor, fit_size
from ..model.maps_cagnet import resize_labels
from ..model.modeling_cagnet import CaGNetForSemanticSegmentation
from ..patches.bank import PatchFit, open_patch_bank
from ..patches.layouts import PatchSource, class_odds
from ..patches.pixel_cnn import PatchPixelCNNConfig
from ..vectors.class_embeddings import load_class_embeddings
from ..vectors.new_classes import ATTRIBUTES, describe_source
from ..weights.backbones import is_own, load_backbone_weights
from .recipe import Recipe, RecipeError, StageRecipe


def use_deterministic_algorithms(deterministic: bool) -> None:
    """Whether the same run on the same machine gives the same bits; a little slower on a GPU."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(deterministic)


def benchmark_of(recipe: Recipe) -> Benchmark:
    benchmark = load_benchmark(recipe.benchmark)
    return benchmark.for_tuning() if recipe.split == "tuning" else benchmark


def dataset_of(recipe: Recipe, split: str) -> Dataset | StreamedRows:
    """A split: drawn from the recipe's seed for `scenes`, opened otherwise.

    A benchmark that is the folder of a prepared dataset is its own dataset.
    """
    source = recipe.dataset
    if source is None and recipe.benchmark == "scenes":
        source = f"scenes:{recipe.seed}"
    if source is None and Path(recipe.benchmark).is_dir():
        source = recipe.benchmark
    if source is None:
        raise ValueError(
            f"the recipe needs dataset=DIR: a folder made by scripts/prepare_data.py {recipe.benchmark}, or a Hub id"
        )
    return open_dataset(
        source,
        split,
        image_column=recipe.image_column,
        mask_column=recipe.mask_column,
        masks=MaskReader(load_benchmark(recipe.benchmark), recipe.label_map),
        streaming=recipe.streaming,
        shuffle_buffer=recipe.shuffle_buffer,
    )


def class_embeddings_of(recipe: Recipe, benchmark: Benchmark) -> np.ndarray:
    """Class embeddings `(N, E)` in model order."""
    if recipe.benchmark == "scenes" and recipe.class_embeddings == ATTRIBUTES:
        return scenes_class_embeddings(benchmark)
    return load_class_embeddings(recipe.class_embeddings, benchmark)


def build_processor(recipe: Recipe) -> CaGNetImageProcessor:
    return CaGNetImageProcessor(**recipe.processor)


def build_model(recipe: Recipe, benchmark: Benchmark, stage: str | None = None) -> CaGNetForSemanticSegmentation:
    """A new model for the recipe's benchmark, with the pre-trained weights that the recipe names.

    Args:
        stage: The stage that it is for; the model that training leaves when None.
    """
    embeddings = class_embeddings_of(recipe, benchmark)
    fields = {
        "embedding_size": embeddings.shape[1],
        "class_embedding_source": describe_source(recipe.class_embeddings),
    } | (recipe.model if stage is None else recipe.model_of(stage))
    if fields.get("classifier") == "projection":
        fields.setdefault("feature_size", embeddings.shape[1])
    try:
        config = CaGNetConfig(**benchmark.config_fields(), **fields)
    except StrictDataclassError as error:
        raise RecipeError(f"model{f' of stage {stage}' if stage else ''}: {error}") from None
    model = CaGNetForSemanticSegmentation(config)
    model.class_embeddings.copy_(torch.from_numpy(embeddings))
    if recipe.backbone_weights is not None:
        load_backbone_weights(model, recipe.backbone_weights)
        if not is_own(recipe.backbone_weights):
            config.weights_from = Path(recipe.backbone_weights).name
    return model


def build_stage_models(recipe: Recipe, benchmark: Benchmark) -> dict[str, CaGNetForSemanticSegmentation]:
    """New models by stage; stages of equal models share one.

    Raises:
        RecipeError: A stage cannot run on its model, or cannot take on the network of the stage before.
    """
    models: dict[str, CaGNetForSemanticSegmentation] = {}
    for name, stage in recipe.stages.items():
        before = next(reversed(models), None)
        if before is not None and recipe.model_of(before) == recipe.model_of(name):
            models[name] = models[before]
        else:
            # A first stage draws the same numbers whatever comes after it.
            with torch.random.fork_rng(devices=[], enabled=before is not None):
                models[name] = build_model(recipe, benchmark, name)
        check_stage(name, stage, models[name])
        try:
            if before is not None:
                hand_network_on(models[before], models[name])
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise RecipeError(f"stages.{name}: its model cannot go on with the network: {reason}") from None
    return models


def hand_network_on(model: CaGNetForSemanticSegmentation, to: CaGNetForSemanticSegmentation) -> None:
    """Give a model the network of another; a contextual module that only one of them has is left alone.

    Raises:
        ValueError: The networks have other layers.
        RuntimeError: Layers of a name have other shapes.
    """
    if to is model:
        return
    found = to.cagnet.load_state_dict(model.cagnet.state_dict(), strict=False)
    for name in [*found.missing_keys, *found.unexpected_keys]:
        if not name.startswith("context."):
            raise ValueError(f"only one of them has {name}")


def check_stage(name: str, stage: StageRecipe, model: CaGNetForSemanticSegmentation) -> None:
    """Refuse, before the first iteration, a stage that this model cannot run.

    Raises:
        RecipeError: It trains a part that the model lacks, or sizes do not fit.
    """
    num_labels, patch_size = model.config.num_labels, model.config.patch_size
    for part, is_there in (("classifier", model.classifier.learns), ("generator", model.generator is not None)):
        if getattr(stage, part) is not None and not is_there:
            raise RecipeError(f"stages.{name} trains the {part}, but this model has none")
    gaussian = model.config.generator == "gaussian"
    if gaussian and stage.generator is not None:
        raise RecipeError(f"stages.{name}.generator: a Gaussian generator is fitted, not trained: use .gaussian")
    if stage.gaussian is not None and not gaussian:
        raise RecipeError(f"stages.{name}.gaussian needs model.generator=gaussian")
    if stage.accumulate > 1 and (stage.moment_matching is not None or stage.gaussian is not None):
        raise RecipeError(f"stages.{name}.accumulate: its steps are no gradient of a batch; leave it out")
    if stage.synthetic_block and stage.synthetic_size % patch_size:
        fitting = max(1, round(stage.synthetic_size / patch_size)) * patch_size
        raise RecipeError(
            f"stages.{name}.synthetic_size: {stage.synthetic_size} is no multiple of patch_size {patch_size}; "
            f"{fitting} is"
        )
    if stage.pseudo_labels is not None and stage.pseudo_labels.top_k > num_labels:
        raise RecipeError(f"stages.{name}.pseudo_labels.top_k: {stage.pseudo_labels.top_k} of {num_labels} classes")


def label_map_source(
    recipe: Recipe, stage: StageRecipe, model: CaGNetForSemanticSegmentation, patches: torch.Tensor | None
) -> LabelMapSource:
    """What the synthetic features of a stage are features of: `shape (B, h, w) -> class ids`."""
    if patches is None:
        return partial(draw_label_maps, model, unseen_rate=stage.unseen_rate)
    odds = class_odds(model.config.num_labels, model.config.unseen_ids, stage.unseen_rate, patches.device)
    return PatchSource(patches, odds, pure_per_sampled=recipe.patches.pure_per_sampled).draw


def patches_of(
    recipe: Recipe,
    model: CaGNetForSemanticSegmentation,
    benchmark: Benchmark,
    dataset: Dataset | StreamedRows,
    folder: Path,
) -> torch.Tensor:
    """The bank of category patches `(M, k, k)` in `folder`, made from the label maps of `dataset` if need be."""
    bank, _report = open_patch_bank(
        folder,
        LabelMapsAtFeatureStride(dataset, benchmark.label_map, recipe, model.cagnet.feature_stride),
        pixel_cnn_config(model.config),
        model.class_embeddings,
        patch_fit(recipe),
        ignore_index=model.config.ignore_index,
        device=model.device,
        progress=True,
    )
    return bank


def pixel_cnn_config(config: CaGNetConfig, **fields) -> PatchPixelCNNConfig:
    """The PixelCNN for the patches of a model, of its classes and patch size."""
    return PatchPixelCNNConfig(
        patch_size=config.patch_size,
        num_classes=config.num_labels,
        unseen_ids=list(config.unseen_ids),
        embedding_size=config.embedding_size,
        **fields,
    )


def patch_fit(recipe: Recipe) -> PatchFit:
    """How the recipe fits that PixelCNN."""
    return PatchFit(**recipe.patches.model_dump(exclude={"pure_per_sampled"}), seed=recipe.seed)


class LabelMapsAtFeatureStride:
    """Training label maps `(h, w)` as coarse as the feature map, in random order; no image is decoded.

    Unseen classes are hidden, even from the upper bound: patches are sampled for them.
    """

    def __init__(self, dataset: Dataset | StreamedRows, label_map: LabelMap, recipe: Recipe, stride: int):
        self.dataset, self.label_map, self.seed = dataset, label_map, recipe.seed
        self.size, self.stride = build_processor(recipe).size, stride

    def __iter__(self):
        if isinstance(self.dataset, StreamedRows):
            masks = self.dataset.without_images()
            rows = masks.shuffled(self.seed)
        else:
            masks = self.dataset.select_columns(["mask", "image_id"])
            rows = np.random.default_rng(self.seed).permutation(len(masks)).tolist()
        for row in rows:
            example = masks[row]
            labels = self.label_map.to_model_order(
                np.asarray(example["mask"]), hide_unseen=True, source=f"mask of {example['image_id']}"
            )
            sides = fit_size(*labels.shape, self.size)
            yield torch.from_numpy(resize_labels(labels, tuple(-(-side // self.stride) for side in sides)))
