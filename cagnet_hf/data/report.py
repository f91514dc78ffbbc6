"""What is in each split of a dataset, class by class: the report, and the card that lies beside the data."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from huggingface_hub import DatasetCard, DatasetCardData

from .benchmarks import Benchmark, Origin
from .examples import CheckedExample
from .label_space import UNLABELLED
from .names import markdown, printable
from .samples import BrokenFileError


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
        problems: What is to be refused.
    """

    image_ids: list[str] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    present: list[np.ndarray] = field(default_factory=list)
    num_pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    skipped: list[str] = field(default_factory=list)
    problems: list[ValueError] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        return len(self.image_ids)

    @property
    def num_images_with(self) -> np.ndarray:
        """How many masks hold each stored id, `(256,)`."""
        return np.sum(self.present or [np.zeros(256, bool)], axis=0)

    def enter(
        self, results: Iterable[CheckedExample | ValueError], *, skip_broken: bool = False
    ) -> Iterator[CheckedExample]:
        """Enter what `check_examples` gives; the valid examples are handed on until there is a problem."""
        for result in results:
            if isinstance(result, CheckedExample):
                self._add(result)
                if not self.problems:
                    yield result
            elif skip_broken and isinstance(result, BrokenFileError):
                self.skipped.append(str(result))
            else:
                self.problems.append(result)

    def _add(self, example: CheckedExample) -> None:
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
        rows.append([str(i), markdown(name), roles.get(i, "ignored"), *counts])
    totals = [f"{n:,}" for r in reports.values() for n in (r.num_images, r.num_pixels.sum())]
    rows.append(["", "all", "", *totals])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    for split, report in reports.items():
        if report.skipped:
            lines += ["", f"Skipped in {split}: {len(report.skipped)}"]
            lines += [f"- {printable(reason)}" for reason in report.skipped]
    return "\n".join(lines)


def dataset_card(benchmark: Benchmark, reports: Mapping[str, SplitReport], origin: Origin) -> str:
    """The card in Markdown; its YAML header tells `datasets` which files make which split."""
    files = [{"split": split, "path": f"data/{split}-*"} for split in reports]
    metadata = DatasetCardData(
        pretty_name=benchmark.name,
        license=origin.license,
        task_categories=["image-segmentation"],
        tags=["zero-shot-segmentation"],
        configs=[{"config_name": "default", "data_files": files}],
    )
    card = DatasetCard.from_template(
        metadata,
        template_path=Path(__file__).with_name("dataset_card.md"),
        benchmark=benchmark,
        title=markdown(benchmark.name),
        description=markdown(origin.description),
        source=markdown(origin.source),
        terms=markdown(origin.terms),
        class_ids=list(benchmark.class_ids),
        origin=origin,
        reports=reports,
        labels=format_report(benchmark, reports),
        number="{:,}".format,
    )
    return str(card)
