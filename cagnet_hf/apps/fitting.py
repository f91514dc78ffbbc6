"""From a folder of photographs and masks to a model of one's own: everything in one call."""

from collections.abc import Sequence
from logging import getLogger
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from ..data.benchmarks import Benchmark
from ..data.builders.own_folder import folder_examples
from ..data.names import markdown
from ..data.prepared import write_prepared
from ..data.report import format_report
from ..files import write_text_whole
from ..model.configuration_cagnet import plain_name
from ..model.prototypes_cagnet import NEAREST_COSINE
from ..training.recipe_files import load_recipe
from ..training.setup import build_model, build_processor
from ..vectors.class_embeddings import save_embedding_table
from ..vectors.imagenet_names import imagenet_names
from ..vectors.new_classes import embed_names
from .training import Run, train

logger = getLogger(__name__)

NETWORK = "pascal_voc_edge"  # recipes of a network for laptops, whatever the photographs show
DATA, VECTORS, REPORT = "data", "class_vectors.safetensors", "report.md"
BATCH = 8
WEAK = 0.3  # an IoU below this is called weak


def fit(
    folder: str | Path,
    output: str | Path,
    *,
    method: str = "prototypes",
    unseen: Sequence[str] | None = None,
    ignored: Sequence[str] | None = None,
    encoder: str | None = None,
    test_share: float = 0.2,
) -> Run:
    """Make a model of one's own photographs: check and prepare them, find class vectors, train, score, report.

    Args:
        folder: With `images/`, `masks/` and `classes.yaml` (see `folder_examples`).
        output: The folder to make. It gets `data/`, the prepared dataset; `class_vectors.safetensors`; what a training
            run leaves behind (`model/`, `metrics.json`, `figures/`); and `report.md`.
        method: The row to train. `prototypes` takes minutes.
        unseen: The classes whose labels are hidden in training; as `classes.yaml` says when None.
        ignored: The classes that are neither learnt nor scored; as `classes.yaml` says when `unseen` is None.
        encoder: The text encoder all-MiniLM-L6-v2, a folder or a Hub id, for names that no bundled table holds. An
            installed package (the extra `names`) when None.
        test_share: The share of the photographs to test on where the folder does not say which.

    Raises:
        ValueError: The folder's files are wrong, a name has no vector, or `output` exists.
    """
    output = Path(output)
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise FileExistsError(f"{output} exists: choose another output")
    roles = None if unseen is None else {"unseen": unseen, "ignored": ignored or ()}
    if ignored is not None and unseen is None:
        raise ValueError("ignored: say which classes are unseen, too")
    name = f"{NETWORK}/{method}"
    keys = [f"benchmark={output / DATA}", f"dataset={output / DATA}", f"class_embeddings={output / VECTORS}"]
    # What holds for other photographs than those that the recipe was tuned on.
    keys += ["stages.fit.tau=null", "model.image_prior=1"] if method == "prototypes" else []
    recipe = load_recipe(name, keys)
    examples, benchmark = folder_examples(folder, test_share, roles)
    if (Path(folder) / "val").is_dir():
        logger.warning(
            "%s is not used: nothing is chosen on other photographs than those of training", f"{folder}/val"
        )
    vectors = embed_names(benchmark.class_names, encoder=encoder)
    _say_strangers(benchmark, vectors)
    reports = write_prepared(examples, output / DATA, benchmark)
    logger.info("%s", format_report(benchmark, reports))
    save_embedding_table(output / VECTORS, benchmark.class_names, vectors)
    if method == "prototypes":
        _say_cost(recipe, benchmark, {split: len(pairs) for split, pairs in examples.items()})
    run = train(name, output, *keys, "trackers=[]")
    text = report(run, benchmark, output)
    write_text_whole(output / REPORT, text)
    logger.info("%s", text)
    return run


def _say_strangers(benchmark: Benchmark, vectors: np.ndarray) -> None:
    """Warn of unseen classes that nothing near is known of."""
    nearest = (vectors @ imagenet_names().vectors.T).max(axis=1)
    fields = benchmark.config_fields()
    for label in fields["unseen_ids"]:
        if nearest[label] < NEAREST_COSINE:
            logger.warning(
                "%r: the backbone knows nothing near this name (similarity %.2f), so what the model makes of the "
                "class is a guess: say the name in other words, or give labels of the class",
                plain_name(fields["id2label"][label]),
                nearest[label],
            )


def _say_cost(recipe, benchmark: Benchmark, images: dict[str, int]) -> None:
    """Say how long the run will take, from a batch of images as the run has them."""
    network, processor = build_model(recipe, benchmark).cagnet.eval(), build_processor(recipe)
    network, pixels = (
        part.to(memory_format=torch.channels_last)
        for part in (network, processor.prepare(torch.zeros(3, 240, 320, dtype=torch.uint8)).expand(BATCH, -1, -1, -1))
    )
    with torch.inference_mode():
        times = []
        for _ in range(4):
            started = perf_counter()
            network(pixels)
            times.append(perf_counter() - started)
    seconds = 2 * min(times) / BATCH * sum(images.values())  # with decoding, the head and the scores
    told = f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
    logger.info("%d images to learn from, %d to test on: about %s", images["train"], images["test"], told)


def report(run: Run, benchmark: Benchmark, output: Path) -> str:
    """A page of plain sentences: what the model can do, where it is weak, and what to try next."""
    metrics = run.metrics
    per_class = {markdown(name): entry for name, entry in metrics["per_class"].items()}
    present = {name: entry for name, entry in per_class.items() if entry["pixels"]}
    lines = [
        f"# A model of {markdown(benchmark.name)}",
        "",
        f"The model knows {len(run.model.config.seen_ids)} classes from labels and "
        f"{len(run.model.config.unseen_ids)} from their names alone. On {metrics['num_images']} photographs that it "
        f"never saw, it gives {_percent(metrics['PA'])} of the labelled pixels the right class.",
        "",
        f"- Classes with labels (seen): mean IoU {_number(metrics['S-mIoU'])}.",
        f"- Classes known by name alone (unseen): mean IoU {_number(metrics['U-mIoU'])}.",
        f"- The harmonic mean of the two (hIoU): {_number(metrics['hIoU'])}.",
        "",
        "IoU is the overlap of predicted and true pixels of a class, divided by their union: 1 is perfect, 0 is never "
        "right.",
        "",
        "| class | known from | IoU | share of its pixels found | most often mistaken for |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, entry in sorted(present.items(), key=lambda item: item[1]["iou"] or 0):
        known = "labels" if entry["seen"] else "its name"
        found, other = _percent(entry["recall"]), markdown(entry["mistaken_for"] or "-")
        lines.append(f"| {name} | {known} | {_number(entry['iou'])} | {found} | {other} |")
    absent = sorted(per_class.keys() - present.keys())
    if absent:
        lines += ["", f"No test photograph shows {', '.join(absent)}: their scores are unknown."]
    weak = [name for name, entry in present.items() if (entry["iou"] or 0) < WEAK]
    lines += ["", "## What to try next", ""]
    if weak:
        lines.append(
            f"- Weak classes: {', '.join(weak)}. A class known by name alone gains most from labels: a dozen masks "
            "that show the class, and `seen` in `classes.yaml`. A seen class gains from more photographs."
        )
    lines += [
        f"- Segment photographs: `cagnet-hf predict --model {output / 'model'} photo.jpg --output predictions`.",
        f"- Add a class by its name: `cagnet-hf add_classes --model {output / 'model'} --class zebra --output more`.",
        f"- Look at the model on a page: `cagnet-hf demo --model {output / 'model'}`.",
    ]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "not in these photographs" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.0f} %"
