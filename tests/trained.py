"""A real training run in seconds: a dozen images, a handful of iterations, a checkpoint at every fourth."""

import json
from pathlib import Path

from cagnet_hf.data.scenes import scenes_dataset

PRETRAIN, FINETUNE = 12, 24  # iterations
SCHEDULE = [
    f"stages.pretrain.iterations={PRETRAIN}",
    "stages.pretrain.batch_size=2",
    "checkpoint_every=4",
    "checkpoints_kept=100",
    "log_every=3",
    "num_workers=0",
    "trackers=[]",
]
FINETUNING = [
    f"stages.finetune.iterations={FINETUNE}",
    "stages.finetune.batch_size=2",
    "stages.finetune.real_block=3",
    "stages.finetune.synthetic_block=3",
]


def write_dataset(folder: Path, *, train: int = 12, test: int = 6) -> Path:
    (folder / "data").mkdir(parents=True)
    for split, count in (("train", train), ("test", test)):
        images = scenes_dataset(0, split).select(range(count))
        images.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def arguments(dataset: Path, output: Path, *keys: str, recipe: str = "scenes", resume: bool = False) -> list[str]:
    """What to call scripts/train.py with; later keys win."""
    options = ["--recipe", recipe, "--output_dir", str(output), *(["--resume"] if resume else [])]
    schedule = SCHEDULE if recipe.endswith("spnet") else SCHEDULE + FINETUNING
    return [*options, f"dataset={dataset}", *schedule, *keys]


def assert_equal_runs(output: Path, expected: Path) -> None:
    """Weights, scores and the history of losses are equal, bit by bit; seconds and memory may differ."""
    assert (output / "model/model.safetensors").read_bytes() == (expected / "model/model.safetensors").read_bytes()
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (output, expected)]
    for entry in [*metrics, *metrics[0]["stages"], *metrics[1]["stages"]]:
        entry.pop("seconds")
        entry.pop("peak_memory_mib", None)
    assert metrics[0] == metrics[1]
    newest = [max((folder / "checkpoints").glob("step-*")) for folder in (output, expected)]
    assert newest[0].name == newest[1].name
    histories = [json.loads((state / "trainer_state.json").read_text())["history"] for state in newest]
    assert histories[0] == histories[1]
