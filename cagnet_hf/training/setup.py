"""From a recipe to its parts: benchmark, data, embeddings, image processor, model, label maps of synthetic steps."""

import os
from dataclasses import replace
from logging import getLogger
from pathlib import Path

import numpy as np
import torch

from ..data.benchmarks import Benchmark, load_benchmark
from ..data.label_space import LabelSpace
from ..data.rows import Rows, StreamedRows
from ..data.scenes import scenes_class_embeddings
from ..data.sources import check_classes_of_dataset, open_dataset
from ..methods import method_of
from ..methods.options import Recipe, RecipeError
from ..model.configuration_cagnet import CaGNetConfig
from ..model.image_processing_cagnet import CaGNetImageProcessor, fit_size
from ..model.maps_cagnet import resize_labels
from ..model.modeling_cagnet import CaGNetForSemanticSegmentation, CaGNetModel
from ..vectors.class_embeddings import BUNDLED, load_class_embeddings
from ..vectors.new_classes import ATTRIBUTES, describe_source, embed_names
from ..weights.backbones import is_own, load_backbone_weights

logger = getLogger(__name__)


def use_deterministic_algorithms(deterministic: bool) -> None:
    """Whether the same run on the same machine gives the same bits; a little slower on a GPU."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(deterministic)


def benchmark_of(recipe: Recipe) -> Benchmark:
    benchmark = load_benchmark(recipe.benchmark)
    if recipe.background == "seen":
        benchmark = benchmark.with_background_seen()
    if recipe.split != "tuning":
        return benchmark
    tuning = benchmark.for_tuning()
    if not benchmark.seen_ids_for_tuning:
        names = ", ".join(tuning.class_names[len(tuning.seen_ids) :])
        logger.info("The class table names no classes for tuning; held out are, spread over the seen ones: %s", names)
    return tuning


def dataset_of(recipe: Recipe, split: str) -> Rows | StreamedRows:
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
            f"the recipe needs dataset=DIR: a folder made by `cagnet-hf prepare_data {recipe.benchmark}`, or a Hub id"
        )
    classes = load_benchmark(recipe.benchmark)
    if split == recipe.train_split and not recipe.label_map:
        check_classes_of_dataset(source, classes)
    return open_dataset(
        source,
        split,
        image_column=recipe.image_column,
        mask_column=recipe.mask_column,
        labels=replace(classes.label_space, label_map=recipe.label_map),
        streaming=recipe.streaming,
        shuffle_buffer=recipe.shuffle_buffer,
    )


def class_embeddings_of(recipe: Recipe, benchmark: Benchmark) -> np.ndarray:
    """Class embeddings `(N, E)` in model order."""
    if recipe.benchmark == "scenes" and recipe.class_embeddings == ATTRIBUTES:
        return scenes_class_embeddings(benchmark)
    if recipe.class_embeddings in (None, BUNDLED):
        return embed_names(benchmark.class_names)
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
    except ValueError as error:
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
    method = method_of(recipe.method, recipe.model)
    models: dict[str, CaGNetForSemanticSegmentation] = {}
    for name, stage in recipe.stages.items():
        before = next(reversed(models), None)
        if before is not None and recipe.model_of(before) == recipe.model_of(name):
            models[name] = models[before]
        else:
            # A first stage draws the same numbers whatever comes after it.
            with torch.random.fork_rng(devices=[], enabled=before is not None):
                models[name] = build_model(recipe, benchmark, name)
        method.check(name, stage, models[name])
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


class LabelMapsAtFeatureStride:
    """Training label maps `(h, w)` as coarse as the feature map, in random order; no image is decoded.

    Unseen classes are hidden, even from the upper bound: patches are sampled for them.
    """

    def __init__(self, dataset: Rows | StreamedRows, labels: LabelSpace, recipe: Recipe, network: CaGNetModel):
        self.dataset, self.labels, self.seed = dataset, labels, recipe.seed
        self.size, self.network = build_processor(recipe).size, network

    def __iter__(self):
        stride, masks = self.network.feature_stride, self.dataset.without_images()
        for row in masks.shuffled(self.seed):
            sample = masks[row]
            labels = self.labels.to_model_order(sample.labels, hide_unseen=True, source=f"mask of {sample.id}")
            sides = fit_size(*labels.shape, self.size)
            yield torch.from_numpy(resize_labels(labels, tuple(-(-side // stride) for side in sides)))
