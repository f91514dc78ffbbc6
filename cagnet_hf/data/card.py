"""The card of a prepared dataset."""

from collections.abc import Mapping
from typing import NamedTuple

from huggingface_hub import DatasetCardData

from .benchmarks import Benchmark
from .report import SplitReport, format_report

CARD, ID2LABEL = "README.md", "id2label.json"  # beside the data of a prepared dataset

_TEXT = """---
{metadata}
---

# {name}

{description}

- Source: {source}
- Licence: {licence}

| split | images | labelled pixels | skipped |
|---|---|---|---|
{splits}

Columns: `image` (the original file), `mask` (8-bit PNG of the ids below; 255 has no label), `image_id`.

```python
from datasets import load_dataset

rows = load_dataset("DIR_OR_ID", split="train")
```

## Labels

Of {num_classes} classes {num_seen} are seen, {num_unseen} unseen. A zero-shot model is trained on labels of seen
classes alone; masks hold those of unseen ones, too, and training hides them. `classes.yaml` says which are which; a
recipe of `cagnet_hf` takes a copy of this folder as `benchmark=DIR`.

{labels}

## Citation

{citation}
"""


class Origin(NamedTuple):
    """Where a dataset comes from.

    Attributes:
        description: A sentence on what it is.
        source: Where it is distributed, or what it was made from.
        license: The Hub's name of a licence; "other" where `terms` are none of these.
        terms: What the licence says, in words.
        citation: BibTeX of what to cite.
    """

    description: str
    source: str = "images and masks of its owner"
    license: str = "unknown"
    terms: str = "not stated by its owner"
    citation: str = ""


def dataset_card(benchmark: Benchmark, reports: Mapping[str, SplitReport], origin: Origin) -> str:
    """The card in Markdown; its YAML header tells `datasets` which files make which split."""
    metadata = DatasetCardData(
        pretty_name=benchmark.name,
        license=origin.license,
        task_categories=["image-segmentation"],
        tags=["zero-shot-segmentation"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*"} for split in reports],
            }
        ],
    )
    splits = [
        f"| {split} | {r.num_images:,} | {r.num_pixels[list(benchmark.class_ids)].sum():,} | {len(r.skipped):,} |"
        for split, r in reports.items()
    ]
    citation = f"```bibtex\n{origin.citation.strip()}\n```" if origin.citation else "Its owner names none."
    return _TEXT.format(
        metadata=metadata.to_yaml(),
        name=benchmark.name,
        description=origin.description,
        source=origin.source,
        licence=origin.terms,
        splits="\n".join(splits),
        num_classes=len(benchmark.class_ids),
        num_seen=len(benchmark.seen_ids),
        num_unseen=len(benchmark.unseen_ids),
        labels=format_report(benchmark, reports),
        citation=citation,
    )
