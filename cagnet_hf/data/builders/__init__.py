"""The official benchmarks: how each is read as it is distributed, where the data come from, how large they are.

A builder is one function that lists pairs of image and mask by split. One for a dataset of one's own needs no entry
here: `write_prepared(my_examples(source), output_dir, load_benchmark("my_classes.yaml"))`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..card import Origin
from ..examples import Example
from . import coco_stuff, pascal_context, pascal_voc


class Builder(NamedTuple):
    """How a benchmark is made of an official download.

    Attributes:
        read: `read(source, **options)` gives the examples by split; no image is opened yet.
        origin: What the dataset card says.
        official_images: How many images the official splits have.
        options: What `read` takes besides the source.
    """

    read: Callable[..., dict[str, list[Example]]]
    origin: Origin
    official_images: Mapping[str, int]
    options: tuple[str, ...] = ()


BUILDERS = {
    "pascal_voc": Builder(
        pascal_voc.pascal_voc_examples, pascal_voc.ORIGIN, {"train": 10_582, "test": 1_449}, options=("sbd",)
    ),
    "pascal_context": Builder(
        pascal_context.pascal_context_examples,
        pascal_context.ORIGIN,
        {"train": 4_998, "test": 5_105},
        options=("labels",),
    ),
    "coco_stuff": Builder(coco_stuff.coco_stuff_examples, coco_stuff.ORIGIN, {"train": 118_287, "test": 5_000}),
}
