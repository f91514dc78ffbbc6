"""The model folder as it is published: weights, configuration, code, image processor, card."""

from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCardData

from .files import write_whole

_COLUMNS = ("S-mIoU", "U-mIoU", "hIoU", "mIoU", "PA", "MA", "U-PA", "U-MA")
_SYNTHETIC = "`scenes` is a synthetic benchmark drawn by the package; its scores say nothing about photographs."

_HEAD = """---
{metadata}
---

# {title}

Zero-shot semantic segmentation: labels pixels of {num_seen} classes it was trained on and of {num_unseen} classes
that no training pixel showed, known only by a class embedding.
{note}
```python
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

model = AutoModelForSemanticSegmentation.from_pretrained("DIR_OR_ID", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("DIR_OR_ID", trust_remote_code=True)
image = Image.open("image.jpg")
outputs = model(**processor(images=image, return_tensors="pt"))
label_map = processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)])[0]
```
"""

_RESULTS = """
## Results

Protocol `{protocol}`, {num_images} test images, after each stage:

{table}

| class | | IoU | recall |
|---|---|---|---|
{classes}

## Training

Recipe of `cagnet_hf` ({seconds:.0f} s of training):

```yaml
{recipe}
```
"""

_CONVERTED = """
## Origin

Converted by `cagnet_hf` from a checkpoint in the layout of the original release: {source}
(SHA-256 `{digest}`).
The licence is that of the checkpoint's authors, not of `cagnet_hf`; the original release names no free one.
No scores were measured for this card.

Input: BGR, 0 to 255, mean subtracted, warped to 513 x 513 (the image processor does this).
Classes, seen then unseen: {classes}.
"""

_SOURCES = """
## Sources

CaGNet: Gu, Zhou, Niu, Zhao, Zhang, *Context-aware Feature Generation for Zero-shot Semantic Segmentation*, ACM MM
2020, arXiv 2008.06893. CaGNetv2: *From Pixel to Patch*, arXiv 2009.12232.
"""


def save_model_folder(model, processor, target: Path, card: str) -> None:
    """Write the folder aside and rename it into place."""

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")

    write_whole(target, write)


def model_card(recipe: dict, metrics: dict, stages: list[dict], seconds: float) -> str:
    """The card of a trained model, made from its recipe and metrics; the YAML header carries the scores.

    Args:
        recipe: What the recipe says beyond its defaults.
        metrics: The final metrics (see `cagnet_hf.METRIC_PATH`) with `protocol` and `num_images`.
        stages: Entries with `name` and `metrics`, in order.
        seconds: Training time.
    """
    title = f"{recipe['method']} on {recipe['benchmark']}"
    results = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=recipe["benchmark"],
            dataset_name=recipe["benchmark"],
            metric_type=column.lower(),
            metric_name=f"{column} (protocol {metrics['protocol']})",
            metric_value=metrics[column],
        )
        for column in _COLUMNS
        if metrics[column] is not None
    ]
    metadata = _metadata(model_name=title, eval_results=results)
    rows = [
        f"| {stage['name']} | " + " | ".join(_cell(stage["metrics"][column]) for column in _COLUMNS) + " |"
        for stage in stages
    ]
    table = "\n".join(["| stage | " + " | ".join(_COLUMNS) + " |", "|---" * (len(_COLUMNS) + 1) + "|", *rows])
    per_class = metrics["per_class"]
    classes = "\n".join(
        f"| {name} | {'seen' if c['seen'] else '**unseen**'} | {_cell(c['iou'])} | {_cell(c['recall'])} |"
        for name, c in per_class.items()
    )
    seen = sum(c["seen"] for c in per_class.values())
    return (_HEAD + _RESULTS + _SOURCES).format(
        metadata=metadata,
        title=title,
        num_seen=seen,
        num_unseen=len(per_class) - seen,
        note=f"\n{_SYNTHETIC}\n" if recipe["benchmark"] == "scenes" else "",
        protocol=metrics["protocol"],
        num_images=metrics["num_images"],
        table=table,
        classes=classes,
        seconds=seconds,
        recipe=yaml.safe_dump(_without_paths(recipe), sort_keys=False).strip(),
    )


def converted_model_card(config, source: str, digest: str) -> str:
    """The card of a converted checkpoint: it claims no scores, and the licence is the authors'.

    Args:
        config: Configuration of the model.
        source: Where the checkpoint came from: a file name or an address.
        digest: SHA-256 of the file.
    """
    system = "SPNet" if config.classifier == "projection" else f"CaGNet({'pi' if config.patch_size == 1 else 'pa'})"
    return (_HEAD + _CONVERTED + _SOURCES).format(
        metadata=_metadata(license="other"),
        title=f"{system}, converted",
        num_seen=len(config.seen_ids),
        num_unseen=len(config.unseen_ids),
        note="",
        source=source,
        digest=digest,
        classes=", ".join(config.id2label[i] for i in range(config.num_labels)),
    )


def _metadata(**fields) -> str:
    """The YAML header of a card."""
    tags = ["zero-shot-segmentation", "cagnet"]
    return ModelCardData(library_name="transformers", pipeline_tag="image-segmentation", tags=tags, **fields).to_yaml()


def _without_paths(recipe: dict) -> dict:
    """The recipe with local files and folders called by their last name alone: where they lay is nobody's business."""

    def last_name(source: str) -> str:
        return ",".join(Path(part).name if Path(part).exists() else part for part in source.split(","))

    keys = ("dataset", "class_embeddings", "backbone_weights")
    paths = {key: last_name(recipe[key]) for key in keys if recipe.get(key)}
    return recipe | paths


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
