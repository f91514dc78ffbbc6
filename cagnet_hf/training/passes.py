"""One pass over whole training images, for stages that learn in closed form."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..data.label_space import LabelSpace
from ..data.rows import Rows, StreamedRows
from ..data.samples import Sample
from ..evaluation.scoring import batches_of_equal_size
from ..methods.base import Batch
from ..methods.options import PassRecipe
from ..model.maps_cagnet import resize_labels
from .features import FeatureCache


class WholePass:
    """The batches of a pass, as `StageBatches` has those of a stage: an iteration takes those of the whole pass."""

    def start(self, iteration: int) -> "WholePass":
        """Nothing is read ahead."""
        return self

    def close(self) -> None:
        """Nothing is open."""

    def image_ids(self, iteration: int) -> list[str]:
        """A pass sees every image: none is named."""
        return []


class WholeImages(WholePass):
    """A pass over images.

    Args:
        rows: The training images; each process takes its share, streamed or not.
        labels: The labels of the model.
        hide_unseen: Hide the labels of unseen classes, as in training.
    """

    def __init__(
        self,
        stage: PassRecipe,
        rows: Rows | StreamedRows,
        labels: LabelSpace,
        processor,
        accelerator: Accelerator,
        *,
        hide_unseen: bool,
    ):
        self.stage, self.rows, self.labels, self.hide_unseen = stage, rows, labels, hide_unseen
        self.processor, self.accelerator = processor, accelerator

    def take(self, batches: WholePass, iteration: int) -> Iterator[Batch]:
        """`pixel_values` `(B, 3, H, W)` and `labels` `(B, H, W)` in model order, image by image of equal size."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        total = len(range(process, len(self.rows), processes)) if isinstance(self.rows, Rows) else None
        samples = tqdm(
            self.rows.share(process, processes),
            total=total,
            desc="whole images",
            disable=not self.accelerator.is_main_process,
            leave=False,
        )
        examples = (self._prepared(sample) for sample in samples if self._is_taken(sample))
        device = self.accelerator.device
        for batch in batches_of_equal_size(examples, self.stage.batch_size):
            pixels, labels = (torch.stack(maps).to(device) for maps in zip(*batch, strict=True))
            yield {"pixel_values": pixels.to(memory_format=torch.channels_last), "labels": labels}

    def _is_taken(self, sample: Sample) -> bool:
        unseen = self.labels.class_ids[self.labels.num_seen :]
        return not (self.stage.images_without_unseen and torch.isin(sample.labels, torch.tensor(unseen)).any())

    def _prepared(self, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
        source = f"mask of {sample.id}"
        labels = self.labels.to_model_order(sample.labels, hide_unseen=self.hide_unseen, source=source)
        pixels = self.processor.prepare(sample.image)
        return pixels, torch.from_numpy(resize_labels(labels, tuple(pixels.shape[-2:]))).long()


class WholeMaps(WholePass):
    """A pass over the maps of images, computed before."""

    def __init__(self, stage: PassRecipe, cache: FeatureCache, accelerator: Accelerator):
        self.stage, self.cache, self.accelerator = stage, cache, accelerator

    def take(self, batches: WholePass, iteration: int) -> Iterator[Batch]:
        """`backbone_features` `(B, C, h, w)` and `labels` `(B, h, w)` in model order, image by image of equal size."""
        device = self.accelerator.device
        examples = ((maps[0], labels) for maps, labels in self.cache)
        for batch in batches_of_equal_size(examples, self.stage.batch_size):
            maps, labels = (torch.stack(values).to(device) for values in zip(*batch, strict=True))
            yield {"backbone_features": maps, "labels": labels.long()}
