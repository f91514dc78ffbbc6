"""A look at a prepared dataset before hours are spent on it: every file decoded, classes counted, doubts voiced."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset, get_dataset_split_names
from tqdm.auto import tqdm

from .benchmarks import Benchmark
from .examples import Example, check_examples
from .label_space import UNLABELLED
from .prepared import refuse_problems
from .report import SplitReport, format_report
from .rows import undecoded
from .samples import MadeFile
from .sources import open_prepared


def survey(folder: str | Path, benchmark: Benchmark, num_proc: int | None = None) -> dict[str, SplitReport]:
    """Look at every image and mask of a prepared dataset, by split.

    Raises:
        FileNotFoundError: There is no such dataset.
        ValueError: A file cannot be decoded, a mask does not fit its image, or holds an id that is no class's.
    """
    open_prepared(folder, split="train")  # says best what is wrong with a folder
    surveys: dict[str, SplitReport] = {}
    for split in get_dataset_split_names(str(folder)):
        rows, surveys[split] = open_prepared(folder, split=split), SplitReport()
        results = check_examples(_stored(rows, split), benchmark.label_space, num_proc)
        for _ in surveys[split].enter(tqdm(results, total=len(rows), desc=split, unit="image")):
            pass
    refuse_problems(surveys)
    return surveys


def _stored(rows: Dataset, split: str) -> Iterator[Example]:
    for row in undecoded(rows, "image", "mask"):
        files = (
            MadeFile(f"{column} of {split} {row['image_id']}", partial(_bytes_of, row[column]))
            for column in ("image", "mask")
        )
        yield Example(row["image_id"], *files)


def _bytes_of(encoded: dict | None) -> bytes:
    if encoded is None or encoded["bytes"] is None:
        raise OSError("there is none")
    return encoded["bytes"]


def warnings(benchmark: Benchmark, surveys: Mapping[str, SplitReport]) -> list[str]:
    """What would spoil training or scores, a sentence each."""
    found, names = [], benchmark.label_names
    trained, tested = (surveys.get(split, SplitReport()) for split in ("train", "test"))
    for ids, role, splits in (
        (benchmark.seen_ids, "seen", {"train": trained, "test": tested}),
        (benchmark.unseen_ids, "unseen", {"test": tested}),
    ):
        for split, counted in splits.items():
            empty = [names[i] for i in ids if not counted.num_pixels[i] and i not in benchmark.unannotated_ids]
            if empty:
                found.append(f"{split} has no pixel of the {role} classes {', '.join(empty)}")
    present = np.array([row for counted in surveys.values() for row in counted.present])
    seen, unseen = (present[:, list(ids)].any(1) for ids in (benchmark.seen_ids, benchmark.unseen_ids))
    if not (seen & unseen).any():
        found.append("seen and unseen classes never share an image: no context leads from one to the other")
    useless = sum(not row[list(benchmark.seen_ids)].any() for row in trained.present)
    if useless:
        found.append(f"{useless} of {trained.num_images} training images have no pixel of a seen class to learn from")
    twins = dict(zip(trained.digests, trained.image_ids, strict=True))
    shared = [
        (i, twins[digest]) for i, digest in zip(tested.image_ids, tested.digests, strict=True) if digest in twins
    ]
    if shared:
        found.append(f"{len(shared)} test images are training images, too (first: {shared[0][0]} is {shared[0][1]})")
    return found


def format_survey(benchmark: Benchmark, surveys: Mapping[str, SplitReport]) -> str:
    """Counts by class, shares of seen, unseen and unlabelled pixels, sizes, and warnings, in Markdown."""
    lines = [format_report(benchmark, surveys), ""]
    for split, counted in surveys.items():
        total = counted.num_pixels.sum()
        groups = {
            "seen": benchmark.seen_ids,
            "unseen": benchmark.unseen_ids,
            "ignored classes": benchmark.ignored_ids,
            "unlabelled": (UNLABELLED,),
        }
        shares = ", ".join(f"{what} {counted.num_pixels[list(ids)].sum() / total:.1%}" for what, ids in groups.items())
        lines.append(f"{split}, pixels: {shares}")
        ranked = sorted((i for i in benchmark.class_ids if counted.num_pixels[i]), key=counted.num_pixels.__getitem__)
        if ranked:
            low, high = ranked[0], ranked[-1]
            ratio = counted.num_pixels[high] / counted.num_pixels[low]
            names = benchmark.label_names
            lines.append(f"{split}, balance: {names[high]} has {ratio:,.0f} times the pixels of {names[low]}")
        for what, values in zip(("width", "height"), np.array(counted.sizes).T, strict=True):
            low, middle, high = values.min(), round(np.median(values)), values.max()
            lines.append(f"{split}, {what}: {low} to {high}, median {middle}")
    return "\n".join([*lines, *(f"Warning: {warning}" for warning in warnings(benchmark, surveys))])


def telling_images(surveys: Mapping[str, SplitReport], number: int) -> list[tuple[str, int]]:
    """(split, row) of images that together show as many classes as can be, each the one that adds most."""
    places = [(split, row) for split, counted in surveys.items() for row in range(counted.num_images)]
    present = np.array([row for counted in surveys.values() for row in counted.present])[:, :UNLABELLED]
    return [places[i] for i in spread(present, number)]


def spread(present: np.ndarray, number: int, weights: np.ndarray | float = 1.0) -> list[int]:
    """At most `number` rows of `present` `(images, classes)` that together show as many classes as can be.

    Args:
        weights: What each class counts, `(classes,)`.
    """
    left, chosen = present.copy(), []
    while len(chosen) < min(number, len(present)):
        gain = (left * weights).sum(1) + present.sum(1) / 1000  # once all classes are shown: the fullest images
        gain[chosen] = -1
        best = int(gain.argmax())
        chosen.append(best)
        left &= ~present[best]
    return chosen
