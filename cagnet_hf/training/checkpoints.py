"""Checkpoints that are whole or absent, and where a run stands."""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"step-(\d+)-(\d+)")


@dataclass
class RunState:
    """Where a run stands: the stage and the iteration to do next, and what was logged and scored so far."""

    stage: int = 0
    iteration: int = 0
    seconds: float = 0.0
    history: list[dict] = field(default_factory=list)
    stages: list[dict] = field(default_factory=list)


def save_checkpoint(folder: Path, accelerator, state: RunState, keep: int) -> Path:
    """Save what `accelerator` has prepared and `state`; keep the newest `keep` checkpoints."""
    target = folder / f"step-{state.stage:02d}-{state.iteration:08d}"
    aside = target.with_name(f".{target.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(aside))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (aside / STATE_FILE).write_text(json.dumps(asdict(state)), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(aside, target)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def load_run_state(checkpoint: Path) -> RunState:
    return RunState(**json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8")))
