"""Run a model over a test set and score it, by either protocol of the field."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers.utils import ModelOutput

from ..data.benchmarks import Benchmark
from ..data.label_space import LabelSpace
from ..data.rows import Rows, StreamedRows
from ..data.samples import Sample
from ..model.configuration_cagnet import plain_name
from ..model.maps_cagnet import resize_labels
from .zero_shot_segmentation.confusion_matrix import ConfusionMatrix

PROTOCOLS = ("full", "paper")


def check_classes(config, benchmark: Benchmark | None, dataset: str) -> None:
    """Refuse a dataset whose ids mean other classes than the model's: its scores would say nothing.

    Args:
        config: The model's configuration.
        benchmark: What the dataset's masks hold; None where nobody knows.
        dataset: What to call it.

    Raises:
        ValueError: A stored id belongs to another class there, or to one that the model does not know.
    """
    if benchmark is None:
        return
    known = {stored_id: config.id2label[i] for i, stored_id in enumerate(config.dataset_ids)}
    scored = set(benchmark.class_ids) - set(config.ignored_dataset_ids)
    differing = [
        f"{stored_id} is {name!r} there and {known.get(stored_id, 'no class')!r} here"
        for stored_id, name in enumerate(benchmark.label_names)
        if plain_name(known.get(stored_id, name if stored_id not in scored else "")) != plain_name(name)
    ]
    if differing:
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ValueError(f"{dataset} has other classes than the model: id {'; '.join(differing[:3])}{more}")


def score(
    model,
    processor,
    dataset: Rows | StreamedRows,
    *,
    protocol: str = "full",
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
    progress: bool = True,
    maps: Iterable[torch.Tensor] | None = None,
) -> dict:
    """Score a model on the rows of a dataset. Every pixel is given to a class, whatever the model's `min_score`.

    Args:
        protocol: `"full"`: logits brought to the original image size (bilinear), scored against the original
            labels. `"paper"`: images warped to a square, predictions scored at feature resolution against labels
            resized to it (nearest); a projection (SPNet) is scored at the square's resolution.
        batch_size: How many images of equal size the model sees at once.
        accelerator: Shares the rows between its processes.
        progress: Whether to show a bar.
        maps: The backbone's maps `(C, h, w)` of this process's images, in their order, where they were computed
            before, by protocol `paper` of images of `square_size`. No image is decoded then.

    Returns:
        The scores (see `ConfusionMatrix.scores`) with `protocol`, `num_images` and the `calibration` that they were
        measured with, equal on all processes.
    """
    accelerator = accelerator or Accelerator()
    options = {"protocol": protocol, "batch_size": batch_size, "progress": progress, "maps": maps}
    batches = scored_batches(model, processor, dataset, accelerator=accelerator, **options)
    with closing(batches):  # whatever happens, the model gets its mode back
        matrix, num_images = count(model.config, processor, batches)
    num_images = accelerator.reduce(torch.tensor(num_images, device=accelerator.device), "sum").item()
    facts = {"protocol": protocol, "num_images": num_images, "calibration": model.config.calibration}
    return gathered_scores(matrix, accelerator) | facts


def check_logits(logits: torch.Tensor) -> None:
    """Refuse scores of which none is the greatest: the class of such a pixel would be the first, whatever it shows.

    Raises:
        ValueError: A logit is no number.
    """
    if logits.isnan().any():
        raise ValueError("the network's scores of an image are no numbers: its weights are too large, or damaged")


def count(config, processor, batches: Iterable[tuple[ModelOutput, list[np.ndarray]]]) -> tuple[ConfusionMatrix, int]:
    """The pixels of `scored_batches` by true and predicted class, and the number of images."""
    matrix, num_images = ConfusionMatrix.of(config), 0
    for outputs, references in batches:
        sizes = [labels.shape for labels in references]
        predictions = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes, min_score=0)
        matrix.add(predictions, references)
        num_images += len(references)
    return matrix, num_images


def gathered_scores(matrix: ConfusionMatrix, accelerator: Accelerator) -> dict:
    """The scores over all processes' images."""
    if accelerator.num_processes > 1:
        counts = accelerator.reduce(torch.from_numpy(matrix.counts).to(accelerator.device), "sum")
        matrix.reset()
        matrix.merge(counts)
    return matrix.scores()


def scored_batches(
    model,
    processor,
    dataset: Rows | StreamedRows,
    *,
    protocol: str = "full",
    batch_size: int = 8,
    accelerator: Accelerator,
    progress: bool = True,
    maps: Iterable[torch.Tensor] | None = None,
    labels: LabelSpace | None = None,
) -> Iterator[tuple[ModelOutput, list[np.ndarray]]]:
    """(outputs of the model in evaluation mode, label maps to score them against) of this process's share.

    Args:
        labels: What the masks mean; the labels of the model's configuration when None.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    square = square_size(processor) if protocol == "paper" else None
    process, processes = accelerator.process_index, accelerator.num_processes
    total = len(range(process, len(dataset), processes)) if isinstance(dataset, Rows) else None
    labels, device = labels or LabelSpace.of(model.config), model.device
    if maps is None:
        samples = dataset.share(process, processes)
        forward, examples = model, _examples(samples, labels, processor, square, device)
    else:
        samples = dataset.without_images().share(process, processes)
        forward, examples = _of_maps(model), _with_maps(samples, labels, maps, square, device)
    training = model.training
    model.eval()
    hidden = not (progress and accelerator.is_main_process)
    try:
        with tqdm(total=total, desc=f"evaluate ({protocol})", disable=hidden) as bar:
            for batch in batches_of_equal_size(examples, batch_size):
                with torch.inference_mode(), accelerator.autocast():
                    outputs = forward(torch.stack([values for values, _ in batch]), return_dict=True)
                check_logits(outputs.logits)
                references = [labels for _, labels in batch]
                if square and model.config.classifier != "projection":
                    size = tuple(outputs.logits.shape[-2:])
                    references = [resize_labels(labels, size) for labels in references]
                yield outputs, references
                bar.update(len(batch))
    finally:
        model.train(training)


def _examples(
    samples: Iterable[Sample], labels: LabelSpace, processor, square: dict | None, device
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """(pixel values on the device, labels in model order): of an image warped to a square, or else of any size."""
    for sample in samples:
        stored = labels.to_model_order(sample.labels, source=f"mask of {sample.id}")
        if square is None:
            yield processor.prepare(sample.image.to(device)), stored
        else:
            pixels = processor.prepare(sample.image.to(device), size=square)
            yield pixels, resize_labels(stored, tuple(square.values()))


def square_size(processor) -> dict[str, int]:
    """The `size` that protocol `paper` warps images to."""
    side = processor.size.get("height") or processor.size["longest_edge"]
    return {"height": side, "width": side}


def _of_maps(model):
    """The model as a function of maps of its backbone."""
    return lambda maps, **options: model(backbone_features=maps, **options)


def _with_maps(
    samples: Iterable[Sample], labels: LabelSpace, maps: Iterable[torch.Tensor], square: dict | None, device
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """(the backbone's map on the device, labels in model order, of an image warped to a square in its size)."""
    for sample, features in zip(samples, maps, strict=True):
        stored = labels.to_model_order(sample.labels, source=f"mask of {sample.id}")
        yield features.to(device), stored if square is None else resize_labels(stored, tuple(square.values()))


def batches_of_equal_size(examples, batch_size: int):
    """Group examples by the shape of their image, which comes first in them; the order is lost.

    At most 64 batches' worth of examples wait for others of their shape.
    """
    waiting, count = defaultdict(list), 0
    for example in examples:
        group = waiting[example[0].shape]
        group.append(example)
        count += 1
        if len(group) == batch_size or count == 64 * batch_size:
            group = max(waiting.values(), key=len)
            count -= len(group)
            yield list(group)
            group.clear()
    yield from (group for group in waiting.values() if group)
