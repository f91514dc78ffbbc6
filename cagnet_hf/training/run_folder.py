"""The folder of a run: which recipe made the folder, where its run stands, and whether a run may go on there."""

import json
from pathlib import Path

import yaml

from ..files import write_text_whole
from ..methods.options import Recipe, RecipeError, changed_keys
from .checkpoints import RunState, checkpoints, load_run_state
from .recipe_files import parse_recipe

RECIPE, RECORD, METRICS, CHECKPOINTS = "recipe.yaml", "run.json", "metrics.json", "checkpoints"


class RunFolder:
    """One run's folder.

    Attributes:
        checkpoint: The newest whole checkpoint, which the run goes on from; None where it starts.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoint: Path | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def newest_checkpoint(self) -> Path | None:
        return next(reversed(checkpoints(self.checkpoints)), None)

    def enter(self, recipe: Recipe, *, resume: bool) -> RunState:
        """Where the run of a recipe stands in this folder.

        Raises:
            RecipeError: The folder holds a run and `resume` is not set, or the run of another recipe.
            ValueError: The newest checkpoint is damaged.
        """
        recorded = self.path / RECIPE
        if not recorded.is_file():
            return RunState()
        if not resume:
            raise RecipeError(f"{self.path} holds a run: add --resume, or choose another --output_dir")
        changed = changed_keys(read_recipe(recorded), recipe)
        if changed:
            raise RecipeError(f"cannot resume {self.path}: the recipe changed in {', '.join(changed)}")
        self.checkpoint = self.newest_checkpoint
        return RunState() if self.checkpoint is None else load_run_state(self.checkpoint)

    def record(self) -> dict | None:
        """What `run.json` said of the run that goes on; None where a run starts."""
        path = self.path / RECORD
        if self.checkpoint is None or not path.is_file():
            return None
        return json.loads(path.read_text(encoding="utf-8"))

    def write(self, recipe: Recipe, record: dict) -> None:
        """Write down what the run depends on."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text_whole(self.path / RECORD, json.dumps(record, indent=1) + "\n")
        write_text_whole(self.path / RECIPE, recipe_text(recipe))


def read_recipe(path: Path) -> Recipe:
    """The recipe that a run wrote down.

    Raises:
        RecipeError: The file is damaged.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values")
    return parse_recipe(tree, str(path))


def recipe_text(recipe: Recipe) -> str:
    """The recipe as YAML, with every key."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
