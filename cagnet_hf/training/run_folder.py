"""The folder of a run: which recipe made the folder, where its run stands, and whether a run may go on there."""

import json
import os
import uuid
from pathlib import Path
from typing import IO

import yaml

from ..files import DATASET_FOLDER, MODEL_FOLDER, check_output, lock_file, parse_yaml, real_path, write_text_whole
from ..methods import method_of
from ..methods.options import Recipe, RecipeError, changed_keys
from .checkpoints import RunState, checkpoints, load_run_state
from .recipe_files import parse_recipe

RECIPE, RECORD, METRICS, CHECKPOINTS = "recipe.yaml", "run.json", "metrics.json", "checkpoints"
MODEL, FIGURES, LOCK = "model", "figures", ".lock"
# What a run writes, besides what its method prepares; a run that starts finds none of these in its folder.
_WRITTEN = (RECIPE, METRICS, CHECKPOINTS, MODEL, FIGURES)


class RunFolder:
    """One run's folder.

    Attributes:
        checkpoint: The newest whole checkpoint, which the run goes on from; None where it starts.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoint: Path | None = None
        self._record: dict | None = None
        self._lock: IO | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def newest_checkpoint(self) -> Path | None:
        return next(reversed(checkpoints(self.checkpoints)), None)

    @property
    def holds_run(self) -> bool:
        """Whether the folder is that of a run; a `recipe.yaml` alone may be anybody's."""
        return (self.path / RECIPE).is_file() and (self.path / RECORD).is_file()

    def enter(self, recipe: Recipe, *, resume: bool, locks: bool = True) -> RunState:
        """Where the run of a recipe stands in this folder.

        Args:
            recipe: The recipe.
            resume: Whether a run that is there goes on.
            locks: Whether this process keeps the other runs out; of the processes of one run only one does.

        Raises:
            RecipeError: The folder holds a run and `resume` is not set, or the run of another recipe, or one that
                another process is at.
            ValueError: The newest checkpoint is damaged, or is that of another run.
            OSError: The folder cannot be written, or holds files that this run would replace.
        """
        check_output(self.path / LOCK, "")
        for given in (recipe.dataset, recipe.benchmark, recipe.class_embeddings, recipe.backbone_weights):
            if given is not None and real_path(Path(given)) == real_path(self.path):
                raise RecipeError(f"{self.path} is read by this run: choose another --output_dir")
        if not self.holds_run:
            written = (*_WRITTEN, *method_of(recipe.method, recipe.model).prepared)
            found = next((self.path / name for name in written if os.path.lexists(self.path / name)), None)
            if found is None and (self.path / RECORD).exists() and "made_with" not in read_record(self.path / RECORD):
                found = self.path / RECORD
            for kind in (MODEL_FOLDER, DATASET_FOLDER):
                if kind.is_at(real_path(self.path)):
                    raise RecipeError(f"{self.path} is a {kind.name}, and stays one: choose another --output_dir")
            if found is not None:
                raise RecipeError(f"{found} is not of a run in this folder, and stays: choose another --output_dir")
            return RunState(run=uuid.uuid4().hex)
        if not resume:
            raise RecipeError(f"{self.path} holds a run: add --resume, or choose another --output_dir")
        changed = changed_keys(read_recipe(self.path / RECIPE), recipe)
        if changed:
            raise RecipeError(f"cannot resume {self.path}: the recipe changed in {', '.join(changed)}")
        if locks:
            self._keep_others_out()
        check_output(self.path / MODEL, MODEL_FOLDER)
        self._record = read_record(self.path / RECORD)
        self.checkpoint = self.newest_checkpoint
        state = RunState() if self.checkpoint is None else load_run_state(self.checkpoint)
        run = self._record.get("run") or state.run or uuid.uuid4().hex
        if state.run not in ("", run):
            raise ValueError(f"{self.checkpoint} is a checkpoint of another run: move it out of this folder")
        state.run = run
        return state

    def record(self) -> dict | None:
        """What `run.json` said of the run that goes on; None where a run starts."""
        return self._record if self.checkpoint is not None and self._record.get("made_with") else None

    def write(self, recipe: Recipe, record: dict) -> None:
        """Write down what the run depends on.

        Raises:
            RecipeError: Another run has begun here meanwhile.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._keep_others_out()
            if self.holds_run:
                raise RecipeError(f"{self.path} holds a run by now: choose another --output_dir")
        write_text_whole(self.path / RECORD, json.dumps(record, indent=1) + "\n")
        write_text_whole(self.path / RECIPE, recipe_text(recipe))

    def _keep_others_out(self) -> None:
        """Hold a lock on the folder, which the system releases when this process ends, however it ends."""
        lock = (self.path / LOCK).open("a")
        if not lock_file(lock):
            lock.close()
            raise RecipeError(
                f"another process is training in {self.path}: wait for its end, or choose another --output_dir"
            )
        self._lock = lock

    def leave(self) -> None:
        """Let others in again."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def read_record(path: Path) -> dict:
    """What a run wrote down about what it was made from.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or (record.get("made_with") and not _is_whole(record)):
            raise ValueError("not what a run writes")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({error}): restore it, or choose another --output_dir") from None
    return record


def _is_whole(record: dict) -> bool:
    splits = record.get("datasets")
    return (
        isinstance(record["made_with"], list)
        and isinstance(record.get("num_processes"), int)
        and isinstance(splits, dict)
        and all(isinstance(split, dict) and "digest" in split for split in splits.values())
    )


def read_recipe(path: Path) -> Recipe:
    """The recipe that a run wrote down.

    Raises:
        RecipeError: The file is damaged.
    """
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values")
    return parse_recipe(tree, str(path))


def recipe_text(recipe: Recipe) -> str:
    """The recipe as YAML, with every key."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
