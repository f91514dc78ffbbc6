"""How the official downloads are read. What is known of each benchmark stands in its class table.

A builder is one function that lists pairs of image and mask by split. One for a dataset of one's own needs no entry
here: `write_prepared(my_examples(source), output_dir, load_benchmark("my_classes.yaml"))`.
"""

from collections.abc import Callable
from typing import NamedTuple

from ..examples import Example
from .coco_stuff import coco_stuff_examples
from .pascal_context import pascal_context_examples
from .pascal_voc import pascal_voc_examples


class Builder(NamedTuple):
    """`read(source, **options)` gives the examples by split; no image is opened yet. `options`: what it takes."""

    read: Callable[..., dict[str, list[Example]]]
    options: tuple[str, ...] = ()


BUILDERS = {
    "pascal_voc": Builder(pascal_voc_examples, options=("sbd",)),
    "pascal_context": Builder(pascal_context_examples, options=("labels",)),
    "coco_stuff": Builder(coco_stuff_examples),
}
