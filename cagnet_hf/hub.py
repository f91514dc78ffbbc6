"""The model folder as it is published: weights, configuration, code, image processor, card."""

import re
from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .files import write_whole

_COLUMNS = ("S-mIoU", "U-mIoU", "hIoU", "mIoU", "PA", "MA", "U-PA", "U-MA")
UNTRAINED_ASPP = "features of an untrained ASPP, initialised at random"
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

_BACKBONE = """---
{metadata}
---

# {title}

A backbone to start from: an image -> a map of {feature_size} features per pixel. It knows no classes.
{aspp}

```python
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("DIR_OR_ID", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("DIR_OR_ID", trust_remote_code=True)
features = model(**processor(images=Image.open("image.jpg"), return_tensors="pt")).features
```

A recipe starts from it with `backbone_weights=DIR`; its `processor` must prepare images as said below.
"""

_PIXEL_CNN = """---
{metadata}
---

# {title}

How likely a {side} x {side} patch of categories is (CaGNetv2). The released network is conditioned on the whole patch,
the pixel it scores included (`condition="patch"`): it scores patches, it cannot be sampled.

```python
import torch
from cagnet_hf.pixel_cnn import PatchPixelCNN

model = PatchPixelCNN.from_pretrained("DIR_OR_ID")
patches = torch.zeros(1, {side}, {side}, dtype=torch.long)  # indices of the classes below
logits = model(patches).logits  # (1, classes, {side}, {side})
```
"""

_ORIGIN = """
## Origin

Converted by `cagnet_hf` from a checkpoint in the layout of {layout}: {source}
(SHA-256 `{digest}`).
The licence is that of the checkpoint's authors, not of `cagnet_hf`{licence}.
No scores were measured for this card.
"""

_INPUT = """
Input (the image processor prepares it): {channels}, 0 to {top}, minus {mean}, divided by {std},
warped to {height} x {width}.
"""

_CLASSES = """
Classes, seen then unseen: {classes}.
"""

_CALIBRATION = re.compile(r"\n## Calibration\n\nγ = .*? (?P<measured>The scores on this card .*?); score anew\.\n?")

_SOURCES = """
## Sources

CaGNet: Gu, Zhou, Niu, Zhao, Zhang, *Context-aware Feature Generation for Zero-shot Semantic Segmentation*, ACM MM
2020, arXiv 2008.06893. CaGNetv2: *From Pixel to Patch*, arXiv 2009.12232.
"""


class Origin(NamedTuple):
    """Where a converted checkpoint comes from.

    Attributes:
        layout: The layout of its file (see `KeyMatch.layout`).
        source: A file name or an address.
        digest: SHA-256 of the file.
    """

    layout: str
    source: str
    digest: str


def save_model_folder(model, processor, target: Path, card: str) -> None:
    """Write the folder aside and rename it into place; `processor` is None where images are no input."""

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        if processor is not None:
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


def calibrated_card(card: str, gamma: float, before: float) -> str:
    """A model card after a calibration was chosen: it says so, and no longer announces scores of another one."""
    parsed = ModelCard(card, ignore_metadata_errors=True)
    parsed.data.eval_results = None
    measured = f"The scores on this card were measured with γ = {before:g}"
    kept = _CALIBRATION.search(parsed.text)
    if kept:  # calibrated before
        measured = kept["measured"]
    text = _CALIBRATION.sub("", parsed.text).strip()
    note = f"## Calibration\n\nγ = {gamma:g}, chosen on held-out seen classes. {measured}; score anew."
    return f"---\n{parsed.data.to_yaml()}\n---\n\n{text}\n\n{note}\n"


def converted_model_card(config, processor, origin: Origin) -> str:
    """The card of a converted checkpoint: it claims no scores, and the licence is the authors'."""
    system = "SPNet" if config.classifier == "projection" else f"CaGNet({'pi' if config.patch_size == 1 else 'pa'})"
    head = _HEAD.format(
        metadata=_metadata(license="other"),
        title=f"{system}, converted",
        num_seen=len(config.seen_ids),
        num_unseen=len(config.unseen_ids),
        note="",
    )
    return head + _origin(origin) + _input(processor) + _classes(config) + _SOURCES


def converted_backbone_card(config, processor, origin: Origin, *, has_aspp: bool) -> str:
    """The card of a converted backbone: without an ASPP in the file, it says that the features are untrained."""
    head = _BACKBONE.format(
        metadata=_metadata(license="other", pipeline_tag="image-feature-extraction"),
        title=f"ResNet-{2 + 3 * sum(config.depths)}, converted",
        feature_size=config.feature_size,
        aspp="The ASPP is the file's." if has_aspp else f"The file has no ASPP: these are {UNTRAINED_ASPP}.",
    )
    return head + _origin(origin) + _input(processor) + _SOURCES


def converted_pixel_cnn_card(config, origin: Origin) -> str:
    """The card of a converted PixelCNN: it scores patches and cannot be sampled."""
    head = _PIXEL_CNN.format(
        metadata=_metadata(license="other", library_name="cagnet-hf", pipeline_tag=None),
        title="PixelCNN over patches of categories, converted",
        side=config.patch_size,
    )
    return head + _origin(origin) + _classes(config) + _SOURCES


def _origin(origin: Origin) -> str:
    theirs = origin.layout in ("DeepLabV2", "PixelCNN")
    return _ORIGIN.format(
        layout="the original release" if theirs else origin.layout,
        source=origin.source,
        digest=origin.digest,
        licence="; the original release names no free one" if theirs else "",
    )


def _input(processor) -> str:
    return _INPUT.format(
        channels="BGR" if processor.do_flip_channel_order else "RGB",
        top=1 if processor.do_rescale else 255,
        mean=list(processor.image_mean),
        std=list(processor.image_std),
        height=processor.size.height,
        width=processor.size.width,
    )


def _classes(config) -> str:
    return _CLASSES.format(classes=", ".join(config.id2label.values()))


def _metadata(**fields) -> str:
    """The YAML header of a card."""
    fields = {"library_name": "transformers", "pipeline_tag": "image-segmentation"} | fields
    return ModelCardData(tags=["zero-shot-segmentation", "cagnet"], **fields).to_yaml()


def _without_paths(recipe: dict) -> dict:
    """The recipe with local files and folders called by their last name alone: where they lay is nobody's business."""

    def last_name(source: str) -> str:
        return ",".join(Path(part).name if Path(part).exists() else part for part in source.split(","))

    keys = ("dataset", "class_embeddings", "backbone_weights")
    paths = {key: last_name(recipe[key]) for key in keys if recipe.get(key)}
    return recipe | paths


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
