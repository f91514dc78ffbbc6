"""Run a model over a test set and score it, by either protocol of the field."""

from collections import defaultdict
from collections.abc import Iterator

import evaluate
import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers.utils import ModelOutput

from ..data.benchmarks import Benchmark, LabelMap
from ..data.rows import StreamedRows
from ..model.maps_cagnet import resize_labels
from ..vectors.class_embeddings import plain_name
from . import METRIC_PATH

PROTOCOLS = ("full", "paper")


def load_metric(config):
    """The `evaluate` metric, set up for a model's classes."""
    return evaluate.load(
        METRIC_PATH,
        num_labels=config.num_labels,
        seen_ids=list(config.seen_ids),
        unseen_ids=list(config.unseen_ids),
        id2label=config.id2label,
        ignore_index=config.ignore_index,
    )


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
    dataset,
    *,
    protocol: str = "full",
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> dict:
    """Score a model on a dataset with the columns `image`, `mask`, `image_id`, numbered or streamed.

    Args:
        protocol: `"full"`: logits brought to the original image size (bilinear), scored against the original
            labels. `"paper"`: images warped to a square, predictions scored at feature resolution against labels
            resized to it (nearest); a projection (SPNet) is scored at the square's resolution.

    Returns:
        The metric's dictionary (see `METRIC_PATH`) with `protocol` and `num_images`, equal on all processes.
    """
    accelerator = accelerator or Accelerator()
    metric, num_images = count(
        model,
        processor,
        dataset,
        protocol=protocol,
        batch_size=batch_size,
        accelerator=accelerator,
        progress=progress,
    )
    num_images = accelerator.reduce(torch.tensor(num_images, device=accelerator.device), "sum").item()
    return summarize(metric, accelerator) | {"protocol": protocol, "num_images": num_images}


def count(
    model, processor, dataset, *, protocol: str, batch_size: int, accelerator: Accelerator, progress: bool = True
):
    """The metric with this process's share of the pixels in its confusion matrix, and its number of images."""
    metric, num_images = load_metric(model.config), 0
    for outputs, references in scored_batches(
        model,
        processor,
        dataset,
        protocol=protocol,
        batch_size=batch_size,
        accelerator=accelerator,
        progress=progress,
    ):
        predictions = processor.post_process_semantic_segmentation(
            outputs, target_sizes=[labels.shape for labels in references]
        )
        metric.add_batch(predictions=[p.cpu().numpy() for p in predictions], references=references)
        num_images += len(references)
    return metric, num_images


def summarize(metric, accelerator: Accelerator) -> dict:
    """The metric over all processes' images."""
    if accelerator.num_processes > 1:
        counts = accelerator.reduce(torch.from_numpy(metric.confusion_matrix).to(accelerator.device), "sum")
        metric.reset()
        metric.merge(counts.cpu().numpy())
    return metric.compute()


def scored_batches(
    model, processor, dataset, *, protocol: str, batch_size: int, accelerator: Accelerator, progress: bool
) -> Iterator[tuple[ModelOutput, list[np.ndarray]]]:
    """(outputs of the model in evaluation mode, label maps to score them against) of this process's share."""
    training = model.training
    model.eval()
    examples = _examples(dataset, LabelMap.of(model.config), processor, protocol, accelerator)
    total = None
    if not isinstance(dataset, StreamedRows):
        total = len(range(accelerator.process_index, len(dataset), accelerator.num_processes))
    with tqdm(
        total=total, desc=f"evaluate ({protocol})", disable=not (progress and accelerator.is_main_process)
    ) as bar:
        for batch in _batches_of_equal_size(examples, batch_size):
            pixel_values = torch.stack([torch.from_numpy(pixels) for pixels, _ in batch]).to(accelerator.device)
            with torch.inference_mode(), accelerator.autocast():
                outputs = model(pixel_values)
            references = [labels for _, labels in batch]
            if protocol == "paper" and model.config.classifier != "projection":
                size = tuple(outputs.logits.shape[-2:])
                references = [resize_labels(labels, size) for labels in references]
            yield outputs, references
            bar.update(len(batch))
    model.train(training)


def _examples(dataset, label_map, processor, protocol, accelerator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(pixel values, labels) of this process's share; labels at the size they are scored from."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    square = {}
    if protocol == "paper":
        side = processor.size.get("height") or processor.size["longest_edge"]
        square = {"size": {"height": side, "width": side}}
    process, processes = accelerator.process_index, accelerator.num_processes
    if isinstance(dataset, StreamedRows):
        rows = dataset.share(process, processes)
    else:
        rows = (dataset[index] for index in range(process, len(dataset), processes))
    for example in rows:
        labels = label_map.to_model_order(np.asarray(example["mask"]), source=f"mask of {example['image_id']}")
        prepared = processor(example["image"], segmentation_maps=labels, return_tensors=None, **square)
        yield prepared["pixel_values"][0], prepared["labels"][0] if protocol == "paper" else labels


def _batches_of_equal_size(examples, batch_size: int):
    """Group examples by image shape; order is lost, which a confusion matrix does not mind."""
    waiting = defaultdict(list)
    for example in examples:
        group = waiting[example[0].shape]
        group.append(example)
        if len(group) == batch_size:
            yield list(group)
            group.clear()
    yield from (group for group in waiting.values() if group)
