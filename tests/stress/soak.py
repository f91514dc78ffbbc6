"""Long runs whose memory must stay flat and whose steps must not become slower.

    python tests/stress/soak.py --output soak.json

20,000 synthetic steps, 2,000 real steps on `scenes` (by the training loop, checkpoints and logs included), 100,000
calls of the metric's `add_batch`, and the features of 20,000 drawn images with 2,000 steps on them. Memory is the
resident set of the process and its data workers, its slope a least squares fit without the first fifth; time is CPU
time, which neighbours on the machine do not change.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import torch

from cagnet_hf.data.rows import Rows
from cagnet_hf.evaluation.zero_shot_segmentation.confusion_matrix import ConfusionMatrix
from cagnet_hf.training import loop, setup
from cagnet_hf.training.features import FeatureMaps
from cagnet_hf.training.interruption import Stopped
from cagnet_hf.training.loop import StageRun, Trainer
from cagnet_hf.training.recipe_files import load_recipe
from cagnet_hf.training.setup import benchmark_of, build_model

MAX_SLOPE = 1.0  # MB per 1000 steps
MAX_SLOWDOWN = 1.2  # of a step of the last quarter against one of the second


class Samples:
    """(step, memory, CPU seconds) on the way."""

    def __init__(self, title: str):
        self.title, self.process = title, psutil.Process()
        self.rows: list[tuple[int, float, float]] = []

    def take(self, step: int) -> None:
        memory = sum(process.memory_info().rss for process in [self.process, *self.process.children(recursive=True)])
        self.rows.append((step, memory / 2**20, time.process_time()))

    def summary(self) -> dict:
        steps, memory, seconds = np.array(self.rows).T
        late = steps > steps[-1] / 5
        slope = np.polyfit(steps[late] / 1000, memory[late], deg=1)[0]
        per_step = np.diff(seconds) / np.diff(steps)
        quarter = max(1, len(per_step) // 4)
        slowdown = np.median(per_step[-quarter:]) / np.median(per_step[quarter : 2 * quarter])
        return {
            "what": self.title,
            "steps": int(steps[-1]),
            "MB": [round(float(memory[late][0]), 1), round(float(memory[-1]), 1)],
            "MB_per_1000_steps": round(float(slope), 4),
            "slowdown": round(float(slowdown), 3),
            "flat": bool(slope < MAX_SLOPE and slowdown < MAX_SLOWDOWN),
        }


def train(title: str, keys: list[str], recipe: str = "scenes") -> dict:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer, samples = Trainer(load_recipe(recipe, ["trackers=[]", *keys]), folder), Samples(title)
        log = StageRun._log

        def watched(stage, bar):
            log(stage, bar)
            samples.take(stage.state.iteration)

        with (
            mock.patch.object(StageRun, "_log", watched),
            contextlib.suppress(Stopped),
        ):  # SIGTERM: what was seen counts
            trainer.run()
    return samples.summary()


def synthetic_steps(steps: int) -> dict:
    keys = ["stages.pretrain.iterations=0", f"stages.finetune.iterations={steps}", "stages.finetune.real_block=0"]
    small = ["stages.finetune.batch_size=2", "stages.finetune.synthetic_size=8", "num_workers=0"]
    return train("synthetic steps", [*keys, *small, "checkpoint_every=2000"])


def real_steps(steps: int) -> dict:
    keys = ["until=pretrain", f"stages.pretrain.iterations={steps}", "stages.pretrain.batch_size=2"]
    return train("real steps on scenes", [*keys, "checkpoint_every=200"])


def features(images: int, steps: int = 2000) -> list[dict]:
    """Features of a resting backbone, of which 16 cells of an image are kept, and training on them.

    The images are the drawn ones of `scenes`, again and again.
    """
    computed, of = Samples("features of drawn images"), FeatureMaps.of
    own_rows = setup.dataset_of

    def many(recipe, split):
        rows = own_rows(recipe, split)
        if split == recipe.test_split:
            return rows
        return Rows(rows.dataset.select(np.arange(images) % len(rows)), rows.labels)

    def watched(maps, samples, *others):
        for number, example in enumerate(of(maps, samples, *others)):
            if number % 500 == 0 and maps.cells_per_image is not None:  # not those of the test images
                computed.take(number)
            yield example

    keys = ["until=pretrain", f"stages.pretrain.iterations={steps}", "stages.pretrain.batch_size=8", "num_workers=0"]
    keys += ["model.aspp=none", "model.feature_size=128", "model.output_stride=8", "stages.pretrain.scales=[1.0]"]
    keys += ["stages.pretrain.network=null", "augmentation.scale_range=[1, 1]"]
    keys += ["feature_cache={cells_per_image: 16}", "checkpoint_every=2000"]
    with mock.patch.object(FeatureMaps, "of", watched), mock.patch.object(loop, "dataset_of", many):
        trained = train("steps on features", keys, recipe="scenes/zs3net")
    return [computed.summary(), trained]


def metric_batches(batches: int) -> dict:
    recipe = load_recipe("scenes")
    config = build_model(recipe, benchmark_of(recipe)).config
    matrix, samples = ConfusionMatrix.of(config), Samples("metric add_batch")
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 16, (2, 8, 4, 32, 32), dtype=np.uint8)
    for step in range(batches + 1):
        matrix.add(list(maps[0, step % 8]), list(maps[1, step % 5]))
        if step % 1000 == 0:
            samples.take(step)
    return samples.summary()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--synthetic", type=int, default=20_000, metavar="STEPS", help="0: leave out")
    parser.add_argument("--real", type=int, default=2_000, metavar="STEPS")
    parser.add_argument("--metric", type=int, default=100_000, metavar="BATCHES")
    parser.add_argument("--features", type=int, default=20_000, metavar="IMAGES")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    runs = {
        metric_batches: args.metric,
        synthetic_steps: args.synthetic,
        real_steps: args.real,
        features: args.features,
    }
    for run, number in runs.items():
        if not number:
            continue
        found = run(number)
        results += found if isinstance(found, list) else [found]
        print(json.dumps(found), flush=True)
    if args.output:
        args.output.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all(result["flat"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
