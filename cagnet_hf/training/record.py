"""The record of a run: what it was made from and with, to make it again, and not to resume it on other data."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from accelerate import Accelerator

from ..data.rows import Rows, StreamedRows
from ..methods.options import Recipe, RecipeError

RECORD_FILE = "run.json"
_PACKAGES = ("cagnet-hf", "torch", "transformers", "datasets", "accelerate", "safetensors", "numpy", "pillow")


def run_record(
    recipe: Recipe,
    datasets: dict[str, Rows | StreamedRows],
    accelerator: Accelerator,
    earlier: dict | None = None,
) -> dict:
    """What goes into `run.json`.

    Args:
        datasets: By split.
        earlier: The record of the run that goes on. Where its environment was another, both are kept, in order.

    Raises:
        RecipeError: The run that goes on had other data, another number of processes, whose batches were others, or
            another mixed precision, whose numbers were others.
    """
    inputs = {
        "seed": recipe.seed,
        "num_processes": accelerator.num_processes,
        "datasets": {split: dataset_fingerprint(dataset) for split, dataset in datasets.items()},
    }
    environment = {
        "git_commit": git_commit(),
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }
    environments = [environment]
    if earlier is not None:
        _check_inputs(earlier, inputs, accelerator.mixed_precision)
        environments = earlier["made_with"] + (environments if earlier["made_with"][-1] != environment else [])
    return inputs | {"made_with": environments, "recipe": recipe.model_dump(mode="json")}


def _check_inputs(earlier: dict, inputs: dict, precision: str) -> None:
    for split, found in inputs["datasets"].items():
        known = earlier["datasets"][split]
        if found != known:
            raise RecipeError(f"cannot resume: the {split} split changed from {_told(known)} to {_told(found)}")
    before, now = earlier["num_processes"], inputs["num_processes"]
    if before != now:
        raise RecipeError(f"cannot resume with {now} process(es) a run of {before}: its batches would be others")
    began = earlier["made_with"][-1].get("mixed_precision", precision)
    if began != precision:
        raise RecipeError(
            f"cannot resume with mixed precision {precision} a run of {began}: its numbers would be others; resume it "
            f"by `accelerate launch --mixed_precision {began} …`"
        )


def _told(fingerprint: dict) -> str:
    number = (
        f"{fingerprint['num_images']} images" if "num_images" in fingerprint else f"{fingerprint['num_files']} files"
    )
    return f"{number} with digest {fingerprint['digest']}"


def dataset_fingerprint(dataset: Rows | StreamedRows) -> dict:
    """What tells a dataset from another without decoding anything (see `Rows.fingerprint`)."""
    return dataset.fingerprint()


def git_commit() -> str | None:
    """The commit of this package's repository, with `-dirty` where files differ from it; None outside of one."""
    here = Path(__file__).resolve()
    if _git(here, "ls-files", "--error-unmatch", here.name) is None:  # in somebody else's repository
        return None
    return _git(here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(file: Path, *arguments: str) -> str | None:
    try:
        finished = subprocess.run(["git", *arguments], cwd=file.parent, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
