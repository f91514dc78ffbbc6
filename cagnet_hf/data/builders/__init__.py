"""How the official downloads are read. What is known of each benchmark stands in its class table.

A builder is one function, `builder(source, **options)`, that lists pairs of image and mask by split and opens none of
them. One for a dataset of one's own needs no entry here:

    write_prepared(my_examples(source), output_dir, load_benchmark("my_classes.yaml"))
"""

from .coco_stuff import coco_stuff_examples
from .pascal_context import pascal_context_examples
from .pascal_voc import pascal_voc_examples

BUILDERS = {
    "pascal_voc": pascal_voc_examples,
    "pascal_context": pascal_context_examples,
    "coco_stuff": coco_stuff_examples,
}
