"""The training batches of each stage, in an order that a resumed run repeats."""

import os
from itertools import islice

import torch
from accelerate import Accelerator

from ..data.rows import StreamedRows
from ..data.stream import EndlessBatches, StreamedBatches, TrainingBatches, TrainingExamples
from ..data.transforms import TrainingTransform
from ..methods.options import Recipe, StageRecipe
from .features import FeatureCache, FeatureTransform

MOST_WORKERS = 8  # beside a GPU: more than the published networks can take from, at 25 milliseconds an image


class StageBatches:
    """Batches of one stage for this process.

    Args:
        images: What is trained on: labelled images that an index leads to (see `TrainingExamples`).
        rows: The dataset that they come from.
        index: The number of the stage in the recipe.
        ignore_index: What the model calls pixels without a class.
    """

    def __init__(
        self,
        recipe: Recipe,
        stage: StageRecipe,
        index: int,
        images,
        rows,
        processor,
        accelerator: Accelerator,
        *,
        ignore_index: int,
    ):
        self.ignore_index = ignore_index
        self.recipe, self.stage, self.seed = recipe, stage, recipe.seed * 1000 + index
        self.images, self.rows, self.processor, self.accelerator = images, rows, processor, accelerator

    def start(self, iteration: int) -> TrainingBatches:
        """The stream of batches from an iteration of the stage on."""
        recipe, device, transform = self.recipe, self.accelerator.device, self._transform()
        pin_memory = device.type == "cuda" and not recipe.in_memory
        examples = TrainingExamples(self.images, transform, self.seed)
        return TrainingBatches(examples, self._order(iteration), workers(recipe, self.accelerator), pin_memory)

    def take(self, batches: TrainingBatches, iteration: int) -> list[dict[str, torch.Tensor] | None]:
        """The batches of an iteration on the device; None for each that a synthetic iteration does without."""
        if self.stage.is_synthetic(iteration):
            return [None] * self.stage.accumulate
        device = self.accelerator.device
        return [
            {key: value.to(device, non_blocking=True) for key, value in next(batches).items()}
            for _ in range(self.stage.accumulate)
        ]

    def image_ids(self, iteration: int) -> list[str]:
        """The images that this process sees in an iteration."""
        if self.stage.is_synthetic(iteration):
            return []
        rows = [row for batch in islice(self._order(iteration), self.stage.accumulate) for _position, row in batch]
        return self.rows.image_ids(rows)

    def _transform(self) -> TrainingTransform | FeatureTransform:
        augmentation = self.stage.augmentation or self.recipe.augmentation
        return TrainingTransform(
            self.processor, self.stage.crop_size, **augmentation.model_dump(), ignore_index=self.ignore_index
        )

    def _order(self, iteration: int) -> EndlessBatches | StreamedBatches:
        streamed = isinstance(self.rows, StreamedRows)
        real_steps = sum(not self.stage.is_synthetic(i) for i in range(iteration))
        return (StreamedBatches if streamed else EndlessBatches)(
            self.rows if streamed else len(self.rows),
            self.stage.batch_size,
            self.seed,
            start=self.stage.accumulate * real_steps,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )


def workers(recipe: Recipe, accelerator: Accelerator) -> int:
    """How many processes prepare the batches of each process that trains."""
    beside_gpu = accelerator.device.type != "cpu"
    # What need not be decoded needs no workers, but where a GPU would wait for it.
    if recipe.in_memory or (recipe.feature_cache is not None and not beside_gpu):
        return 0
    if recipe.num_workers is not None:
        return recipe.num_workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))  # of this machine
    return min(MOST_WORKERS, max(1, cores // processes)) if beside_gpu else 1


class FeatureBatches(StageBatches):
    """The batches of a stage that trains on features which were computed once. Each process has its own images.

    Args:
        images: `cache`, or what it holds as a list.
        stride: Pixels of an image per cell.
    """

    def __init__(self, recipe, stage, index: int, images, cache: FeatureCache, accelerator, *, stride: int, **options):
        super().__init__(recipe, stage, index, images, cache, None, accelerator, **options)
        self.stride = stride

    def _transform(self) -> FeatureTransform:
        augmentation = self.stage.augmentation or self.recipe.augmentation
        cells = None
        if self.recipe.feature_cache.cells_per_image is None:
            cells = max(1, self.stage.crop_size // self.stride)
        return FeatureTransform(cells, flip_probability=augmentation.flip_probability, ignore_index=self.ignore_index)

    def _order(self, iteration: int) -> EndlessBatches:
        real_steps = sum(not self.stage.is_synthetic(i) for i in range(iteration))
        seed = self.seed + 1_000_003 * self.accelerator.process_index
        return EndlessBatches(len(self.rows), self.stage.batch_size, seed, start=self.stage.accumulate * real_steps)
