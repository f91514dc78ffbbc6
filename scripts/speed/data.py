"""Lines of the data: preparing photographs, and feeding a training with them, on 2 cores."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from cagnet_hf.methods.steps import updates
from datasets import Dataset
from PIL import Image

from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data.examples import Example
from cagnet_hf.data.label_space import pascal_palette
from cagnet_hf.data.prepared import write_prepared
from cagnet_hf.data.rows import Rows
from cagnet_hf.data.stream import EndlessBatches, LabelledImages, TrainingBatches, TrainingExamples
from cagnet_hf.data.transforms import TrainingTransform
from cagnet_hf.training.optimizers import build_optimizers
from cagnet_hf.training.recipe_files import load_recipe
from cagnet_hf.training.setup import build_model, build_processor

from .measuring import Line, Setting

PHOTOGRAPHS = 400
BATCHES = 4  # that the loader line loads


def data_lines(setting: Setting) -> Iterator[Line]:
    """Preparing photographs; on CPUs, the loader of a training beside the training."""
    benchmark = load_benchmark("pascal_voc")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        examples = photographs(folder)

        def prepare():
            write_prepared({"train": examples}, folder / "prepared", benchmark, overwrite=True, num_proc=2)

        def decode():
            for example in examples:
                for path in (example.image, example.mask):
                    with Image.open(path) as image:
                        image.load()

        name = f"preparation of {PHOTOGRAPHS} photographs"
        yield Line(name, prepare, "decoding them in one thread", decode, at_most=1.25, clock="wall")
        if not setting.on_gpu:
            prepare()
            files = str(folder / "prepared/data/*.parquet")
            rows = Dataset.from_parquet(files, cache_dir=str(folder / "cache"), keep_in_memory=True)
            yield loader_line(Rows(rows, benchmark.label_space), benchmark)


def loader_line(rows, benchmark) -> Line:
    """Loading (start of its workers included) and training of as many images, crops of 224."""
    recipe = load_recipe("pascal_voc_edge/cagnet_pi", ["backbone_weights=null"])
    stage = recipe.stages["pretrain"]
    model = build_model(recipe, benchmark).train()
    optimizers = build_optimizers(model, stage)
    transform = TrainingTransform(build_processor(recipe), stage.crop_size, **recipe.augmentation.model_dump())
    examples = TrainingExamples(LabelledImages(rows, benchmark.label_space, hide_unseen=True), transform, seed=0)

    def load(num_workers=2):
        batches = EndlessBatches(len(rows), stage.batch_size, seed=0)
        return list(itertools.islice(TrainingBatches(examples, batches, num_workers, pin_memory=False), BATCHES))

    batch = load(0)[0]

    def train():
        for _ in range(BATCHES):
            for result in updates(model, batch, recipe, stage, None):
                for optimizer in optimizers.values():
                    optimizer.zero_grad()
                result.total.backward()
                for part in result.learners:
                    optimizers[part].step()

    name = f"loader, {BATCHES * stage.batch_size} images by 2 workers"
    return Line(name, load, "training of EfficientNet-Lite0 on as many", train, at_least=4, clock="wall")


def photographs(folder: Path) -> list[Example]:
    """Images of 320 x 240 as smooth and as noisy as photographs, and palette masks of a few blobs each."""
    rng, size, examples = np.random.default_rng(0), (320, 240), []
    for index in range(PHOTOGRAPHS):
        colours, ids = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), rng.choice([0, 0, 0, 8, 12, 15], (6, 8))
        image = np.asarray(Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC))
        image = (image + rng.normal(0, 6, (240, 320, 1))).clip(0, 255).astype(np.uint8)
        mask = Image.fromarray(ids.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        mask.putpalette(pascal_palette().tobytes())
        paths = [folder / f"{index}.{suffix}" for suffix in ("jpg", "png")]
        Image.fromarray(image).save(paths[0], quality=90)
        mask.save(paths[1])
        examples.append(Example(str(index), *paths))
    return examples
