"""Checkpoints that are whole or absent, and where a run stands."""

import hashlib
import json
import os
import re
import shutil
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError

from ..files import sha256, write_text_whole

STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"step-(\d+)-(\d+)")


@dataclass
class RunState:
    """Where a run stands: the stage and the iteration to do next, and what was logged and scored so far.

    `run` names the run; it is empty in checkpoints of the first edition.
    """

    stage: int = 0
    iteration: int = 0
    seconds: float = 0.0
    peak_memory_mib: int = 0  # of this stage so far
    history: list[dict] = field(default_factory=list)
    stages: list[dict] = field(default_factory=list)
    run: str = ""


def save_checkpoint(folder: Path, accelerator, state: RunState, keep: int) -> Path:
    """Save what `accelerator` has prepared and `state`; keep the newest `keep` checkpoints.

    Raises:
        OSError: It could not be written, as on a full disk. Those there were are left alone.
    """
    target = _checkpoint_of(folder, state)
    aside = target.with_name(f".{target.name}.partial")
    if accelerator.is_main_process:
        for leftover in folder.glob(".step-*"):  # of a killed run
            shutil.rmtree(leftover, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        aside.mkdir(parents=True, exist_ok=True)
        accelerator.save_state(str(aside))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _write_state(aside, state, {path.name: sha256(path) for path in sorted(aside.iterdir())})
            if target.exists():
                _remove(target)
            os.replace(aside, target)
            for old in checkpoints(folder)[:-keep]:
                _remove(old)
    except (OSError, RuntimeError, SafetensorError) as error:  # as Python, torch and safetensors call a full disk
        free = shutil.disk_usage(folder).free >> 20
        shutil.rmtree(aside, ignore_errors=True)
        kept = next(reversed(checkpoints(folder)), "none")
        raise OSError(
            f"{target}: the checkpoint could not be written ({error}; {free} MB were free); make room and go on with "
            f"--resume; last whole checkpoint: {kept}"
        ) from error
    accelerator.wait_for_everyone()
    return target


def record_scores(folder: Path, state: RunState) -> None:
    """Note in the checkpoint at the end of a stage, if there is one, how the stage scored."""
    checkpoint = _checkpoint_of(folder, state)
    if checkpoint.is_dir():
        try:
            _write_state(checkpoint, state, _digests(checkpoint))
        except OSError as error:  # nothing is lost but the time of scoring
            message = f"{checkpoint}: the score could not be noted ({error}); resumed, it is found again"
            warnings.warn(message, stacklevel=2)


def forget_scores(checkpoint: Path) -> None:
    """Let who goes on from the checkpoint at the end of a stage score that stage again."""
    state = load_run_state(checkpoint)
    state.stages = state.stages[: state.stage]
    _write_state(checkpoint, state, _digests(checkpoint))


def _checkpoint_of(folder: Path, state: RunState) -> Path:
    return folder / f"step-{state.stage:02d}-{state.iteration:08d}"


def _write_state(checkpoint: Path, state: RunState, digests: dict[str, str]) -> None:
    """Write the state beside the files that `digests` knows, with its own digest among theirs."""
    fields = asdict(state)
    written = fields | {"sha256": digests | {STATE_FILE: _digest(fields)}}
    write_text_whole(checkpoint / STATE_FILE, json.dumps(written))


def _digests(checkpoint: Path) -> dict[str, str]:
    return json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))["sha256"]


def _digest(fields: dict) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def load_run_state(checkpoint: Path) -> RunState:
    """The state in a checkpoint, every file of which is as it was written.

    Raises:
        ValueError: A file is missing or damaged.
    """
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        digests = state.pop("sha256")
        for name, digest in digests.items():
            if digest != (_digest(state) if name == STATE_FILE else sha256(checkpoint / name)):
                raise ValueError(f"{name} is not what was written")
        return RunState(**state)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{checkpoint}: damaged ({error}); delete it to go on from the one before") from None


def _remove(checkpoint: Path) -> None:
    """Whoever is killed here leaves no half checkpoint under its name."""
    aside = checkpoint.with_name(f".{checkpoint.name}.old")
    os.replace(checkpoint, aside)
    shutil.rmtree(aside)
