"""From a recipe to its parts: benchmark, data, embeddings, image processor, model, label maps of synthetic steps."""

from functools import partial

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError

from ..benchmarks import Benchmark, load_benchmark
from ..class_embeddings import load_class_embeddings
from ..configuration_cagnet import CaGNetConfig
from ..data.scenes import scenes_class_embeddings
from ..data.sources import open_dataset
from ..image_processing_cagnet import CaGNetImageProcessor
from ..modeling_cagnet import CaGNetForSemanticSegmentation
from ..pretrained_weights import load_backbone_weights
from .recipe import Recipe, RecipeError, StageRecipe
from .steps import LabelMapSource, draw_label_maps


def benchmark_of(recipe: Recipe) -> Benchmark:
    benchmark = load_benchmark(recipe.benchmark)
    return benchmark.for_tuning() if recipe.split == "tuning" else benchmark


def dataset_of(recipe: Recipe, split: str) -> Dataset:
    """The `train` or `test` split: drawn from the recipe's seed for `scenes`, opened otherwise."""
    source = recipe.dataset
    if source is None and recipe.benchmark == "scenes":
        source = f"scenes:{recipe.seed}"
    if source is None:
        raise ValueError(
            f"the recipe needs dataset=DIR: a folder made by scripts/prepare_data.py {recipe.benchmark}, or a Hub id"
        )
    return open_dataset(source, split, image_column=recipe.image_column, mask_column=recipe.mask_column)


def class_embeddings_of(recipe: Recipe, benchmark: Benchmark) -> np.ndarray:
    """Class embeddings `(N, E)` in model order."""
    if recipe.benchmark == "scenes" and recipe.class_embeddings == "attributes":
        return scenes_class_embeddings(benchmark)
    return load_class_embeddings(recipe.class_embeddings, benchmark)


def build_processor(recipe: Recipe) -> CaGNetImageProcessor:
    return CaGNetImageProcessor(**recipe.processor)


def build_model(recipe: Recipe, benchmark: Benchmark) -> CaGNetForSemanticSegmentation:
    """A new model for the recipe's benchmark, ImageNet backbone weights loaded where the recipe names some."""
    embeddings = class_embeddings_of(recipe, benchmark)
    fields = {"embedding_size": embeddings.shape[1]} | recipe.model
    if fields.get("classifier") == "projection":
        fields.setdefault("feature_size", embeddings.shape[1])
    try:
        config = CaGNetConfig(**benchmark.config_fields(), **fields)
    except StrictDataclassError as error:
        raise RecipeError(f"model: {error}") from None
    model = CaGNetForSemanticSegmentation(config)
    model.class_embeddings.copy_(torch.from_numpy(embeddings))
    if recipe.backbone_weights is not None:
        load_backbone_weights(model, recipe.backbone_weights)
    return model


def label_map_source(model: CaGNetForSemanticSegmentation, stage: StageRecipe) -> LabelMapSource:
    """What the synthetic features of a stage are features of: `shape (B, h, w) -> class ids`."""
    return partial(draw_label_maps, model, unseen_rate=stage.unseen_rate)
