"""What went into a split, class by class."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .benchmarks import IGNORE_INDEX, Benchmark
from .examples import CheckedExample


@dataclass
class SplitReport:
    """What went into a split. The counts are indexed by stored id, `(256,)`."""

    num_images: int = 0
    num_pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    num_images_with: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    skipped: list[str] = field(default_factory=list)

    def add(self, example: CheckedExample) -> None:
        self.num_images += 1
        self.num_pixels += example.num_pixels
        self.num_images_with += example.num_pixels > 0

    def to_json(self) -> dict:
        return {
            "num_images": self.num_images,
            "num_pixels": self.num_pixels.tolist(),
            "num_images_with": self.num_images_with.tolist(),
            "skipped": self.skipped,
        }

    @classmethod
    def from_json(cls, fields: dict) -> "SplitReport":
        counts = {key: np.array(fields[key], np.int64) for key in ("num_pixels", "num_images_with")}
        return cls(fields["num_images"], **counts, skipped=fields["skipped"])


def format_report(benchmark: Benchmark, reports: Mapping[str, SplitReport]) -> str:
    """The closing report in Markdown: images and pixels by class and split, and what was skipped and why."""
    roles = dict.fromkeys(benchmark.seen_ids, "seen") | dict.fromkeys(benchmark.unseen_ids, "unseen")
    header = ["id", "class", "role"] + [f"{split} {what}" for split in reports for what in ("images", "pixels")]
    rows = [header, ["---"] * len(header)]
    names = {i: name for i, name in enumerate(benchmark.label_names) if name} | {IGNORE_INDEX: "(unlabelled)"}
    for i, name in names.items():
        counts = [f"{n:,}" for r in reports.values() for n in (r.num_images_with[i], r.num_pixels[i])]
        rows.append([str(i), name, roles.get(i, "ignored"), *counts])
    totals = [f"{n:,}" for r in reports.values() for n in (r.num_images, r.num_pixels.sum())]
    rows.append(["", "all", "", *totals])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    for split, report in reports.items():
        if report.skipped:
            lines += ["", f"Skipped in {split}: {len(report.skipped)}"]
            lines += [f"- {reason}" for reason in report.skipped]
    return "\n".join(lines)
