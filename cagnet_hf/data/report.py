"""What is in a split, class by class."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .benchmarks import Benchmark
from .examples import CheckedExample
from .label_space import UNLABELLED


@dataclass
class SplitReport:
    """What is in a split.

    Attributes:
        image_ids: Of the examples, in order; so are the next three.
        digests: Of the images' bytes: equal ones are of the same picture.
        sizes: Width and height.
        present: Which stored ids the mask holds, `(256,)` bool.
        num_pixels: Of all masks, by stored id, `(256,)`.
        skipped: What was left out, and why.
    """

    image_ids: list[str] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    present: list[np.ndarray] = field(default_factory=list)
    num_pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    skipped: list[str] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        return len(self.image_ids)

    @property
    def num_images_with(self) -> np.ndarray:
        """How many masks hold each stored id, `(256,)`."""
        return np.sum(self.present or [np.zeros(256, bool)], axis=0)

    def add(self, example: CheckedExample) -> None:
        self.image_ids.append(example.image_id)
        self.digests.append(hashlib.blake2b(example.image_bytes, digest_size=16).digest())
        self.sizes.append(example.size)
        self.present.append(example.num_pixels > 0)
        self.num_pixels += example.num_pixels


def format_report(benchmark: Benchmark, reports: Mapping[str, SplitReport]) -> str:
    """The closing report in Markdown: images and pixels by class and split, and what was skipped and why."""
    roles = dict.fromkeys(benchmark.seen_ids, "seen") | dict.fromkeys(benchmark.unseen_ids, "unseen")
    header = ["id", "class", "role"] + [f"{split} {what}" for split in reports for what in ("images", "pixels")]
    rows = [header, ["---"] * len(header)]
    names = {i: name for i, name in enumerate(benchmark.label_names) if name} | {UNLABELLED: "(unlabelled)"}
    counted = [(report.num_images_with, report.num_pixels) for report in reports.values()]
    for i, name in names.items():
        counts = [f"{values[i]:,}" for pair in counted for values in pair]
        rows.append([str(i), name, roles.get(i, "ignored"), *counts])
    totals = [f"{n:,}" for r in reports.values() for n in (r.num_images, r.num_pixels.sum())]
    rows.append(["", "all", "", *totals])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    for split, report in reports.items():
        if report.skipped:
            lines += ["", f"Skipped in {split}: {len(report.skipped)}"]
            lines += [f"- {reason}" for reason in report.skipped]
    return "\n".join(lines)
