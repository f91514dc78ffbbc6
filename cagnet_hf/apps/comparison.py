"""Several systems on one benchmark: run what is missing, share what rows have in common, tabulate."""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from functools import cache
from hashlib import sha256
from itertools import combinations
from logging import getLogger
from pathlib import Path

import yaml
from accelerate import Accelerator

from ..data.benchmarks import CLASS_TABLE, load_benchmark
from ..data.names import did_you_mean
from ..files import check_output, holds, made_by, parse_yaml, write_whole
from ..methods import method_of
from ..methods.options import ForeignOption, Recipe, RecipeError, changed_keys
from ..training.checkpoints import checkpoints, forget_scores, load_run_state
from ..training.features import FEATURES
from ..training.loop import Trainer
from ..training.recipe_files import load_recipe, parse_recipe, recipe_names, stage_of_key
from ..training.run_folder import RECIPE, RECORD, recipe_text
from .report import write_report

logger = getLogger(__name__)

NETWORK = "pascal_voc_frozen"  # recipes that take minutes on a laptop, for a benchmark of one's own


def recipes_for(benchmark: str) -> tuple[str, list[str]]:
    """(folder of recipes, keys to change in all of them) to compare rows on a benchmark.

    Args:
        benchmark: A folder of recipes; or a prepared folder of one's own or a class table's file, which goes with the
            recipes of `NETWORK`.
    """
    own = any(path.is_file() for path in (Path(benchmark), Path(benchmark) / CLASS_TABLE))
    return (NETWORK, [f"benchmark={benchmark}"]) if own and benchmark not in _recipe_folders() else (benchmark, [])


def name_of_comparison(recipes: str, recipe: Recipe) -> str:
    """What tables and figures call a comparison: the folder of recipes; before it a benchmark of one's own."""
    benchmark = load_benchmark(recipe.benchmark)
    return f"{benchmark.name} with recipes of {recipes}" if benchmark.table else recipes


def _recipe_folders() -> list[str]:
    return sorted({name.split("/")[0] for name in recipe_names()})


def variants_of(benchmark: str, rows: Sequence[str] = (), file: Path | None = None) -> dict[str, list[str]]:
    """What to compare: name -> row and the keys that are changed in the row.

    Args:
        benchmark: A folder of recipes.
        rows: The rows to compare, unchanged; all rows of the benchmark when there are none.
        file: A YAML file of changed rows to compare instead.

    Raises:
        ValueError: There is no such benchmark or row, or the file cannot be read.
    """
    known = [name.split("/")[1] for name in recipe_names() if name.split("/")[0] == benchmark]
    if not known:
        hint = did_you_mean(benchmark, _recipe_folders())
        raise ValueError(
            f"no benchmark {benchmark!r}{hint}; known: {', '.join(_recipe_folders())}, and prepared folders"
        )
    variants = read_variants(file) if file else {row: [row] for row in rows or known}
    for row, *_ in variants.values():
        if row not in known:
            raise ValueError(f"{benchmark} has no row {row!r}{did_you_mean(row, known)}; rows: {', '.join(known)}")
    return variants


def read_variants(path: Path) -> dict[str, list[str]]:
    """A YAML file of variants: name -> row and the keys that are changed in the row."""
    try:
        variants = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(variants, dict) or not variants:
        raise ValueError(f"{path}: variants are a mapping, NAME: [ROW, key=value, ...]")
    for name, words in variants.items():
        if not (isinstance(name, str) and re.fullmatch(r"[\w-]+", name)):
            raise ValueError(f"{path}: {name!r} is to name a folder: use letters, digits, - and _")
        if not (isinstance(words, list) and words and all(isinstance(word, str) for word in words)):
            raise ValueError(f"{path}: {name}: write [ROW, key=value, ...]")
    return variants


def recipes_of(benchmark: str, variants: dict[str, list[str]], keys: Sequence[str] = ()) -> dict[str, Recipe]:
    """The recipes of variants, with keys that are changed in all of them that know the key: a stage's keys in those
    that have the stage, a method's options in those of the method.

    Raises:
        RecipeError: A key cannot be read, or speaks of what none of the rows has.
    """
    stages = {row: list(load_recipe(f"{benchmark}/{row}").stages) for row, *_ in variants.values()}
    known = list(dict.fromkeys(stage for of_row in stages.values() for stage in of_row))
    for key in keys:
        if stage_of_key(key) not in (None, *known):
            raise RecipeError(
                f"{key!r}: none of the rows has a stage {stage_of_key(key)!r}; stages: {', '.join(known)}"
            )
    knows = {row: [key for key in keys if _knows(f"{benchmark}/{row}", stages[row], key)] for row in stages}
    for key in keys:
        if not any(key in known_keys for known_keys in knows.values()):
            raise RecipeError(f"{key!r} is an option of no method among the rows {', '.join(stages)}")
    return {
        name: load_recipe(f"{benchmark}/{row}", [*knows[row], *changed]) for name, (row, *changed) in variants.items()
    }


def _knows(recipe: str, stages: Sequence[str], key: str) -> bool:
    """Whether a changed key means something to a recipe; what is wrong with the key is told where all are read."""
    if stage_of_key(key) not in (None, *stages):
        return False
    try:
        load_recipe(recipe, [key])
    except ForeignOption:
        return False
    except RecipeError:
        pass
    return True


@cache
def published_results() -> dict[str, dict[str, dict[str, float]]]:
    """benchmark -> row -> column -> fraction, as printed in CaGNetv2 (arXiv 2009.12232)."""
    path = Path(__file__).with_name("published_results.json")
    return json.loads(path.read_text(encoding="utf-8"))


def continues(recipe: Recipe, other: Recipe) -> bool:
    """Whether a run of `recipe` starts with all of a run of `other`: its stages first, and nothing else different.

    A calibration acts at test time alone, so it makes no difference where only the last of these stages, which can be
    scored again, has another.
    """
    names, other_names = list(recipe.stages), list(other.stages)
    if names[: len(other_names)] != other_names:
        return False
    changed = changed_keys(other, recipe.first_stages(other_names))
    before = other_names[:-1]
    return set(changed) <= {"method", "model.calibration"} and _gammas(recipe, before) == _gammas(other, before)


def _gammas(recipe: Recipe, stages: Iterable[str]) -> list[float]:
    return [recipe.model_of(stage).get("calibration") or 0.0 for stage in stages]


def common_starts(recipes: Iterable[Recipe]) -> dict[str, Recipe]:
    """The longest runs that two rows both start with and that are no row themselves, by names made of what they do."""
    starts: dict[str, Recipe] = {}
    recipes = list(recipes)
    for recipe, other in combinations(recipes, 2):
        names = list(recipe.stages)
        prefixes = (recipe.first_stages(names[:count]) for count in range(len(names), 0, -1))
        start = next((prefix for prefix in prefixes if continues(other, prefix)), None)
        known = [*recipes, *starts.values()]
        if start is not None and not any(continues(start, one) and continues(one, start) for one in known):
            # Told by what it does, whichever of the rows comes first.
            last = list(start.stages)[-1]
            model = {key: value for key, value in start.model.items() if key != "calibration"}
            shared = start.model_copy(update={"method": last, "model": model}).model_dump(mode="json")
            start = parse_recipe(shared, last)  # of the method whose parts the shared model has
            content = json.dumps(start.model_dump(mode="json"), sort_keys=True)
            starts[f"{last}_{sha256(content.encode()).hexdigest()[:8]}"] = start
    return starts


def run_rows(recipes: dict[str, Recipe], folder: Path, features: Path | None = None) -> dict[str, dict]:
    """Train and score every row in `folder/ROW`; a finished row is read, a started one resumed.

    A row whose stages begin with all of another finished row's goes on from that one's last checkpoint: to the same
    weights as a run of its own. First stages that rows share without one of them being just these are a run of their
    own, `folder/STAGE_DIGEST`.

    Args:
        features: Where the rows share features of a resting backbone; `folder/features` when None.

    Returns:
        The rows' metrics.
    """
    accelerator, results = Accelerator(), {}  # not a PartialState, which knows no processes on CPUs by itself
    asked, recipes = recipes, recipes | _starts_to_run(recipes, folder)
    for row, recipe in sorted(recipes.items(), key=lambda item: len(item[1].stages)):
        output = folder / row
        if accelerator.is_main_process and not (output / RECIPE).is_file():
            shorter = [
                done
                for done in results
                if continues(recipe, recipes[done]) and checkpoints(folder / done / "checkpoints")
            ]
            if shorter:
                start = max(shorter, key=lambda done: len(recipes[done].stages))
                last = list(recipes[start].stages)[-1:]
                other_gamma = _gammas(recipe, last) != _gammas(recipes[start], last)
                _start_from(folder / start, output, recipe, score_again=other_gamma)
        accelerator.wait_for_everyone()
        # A row that began with features of its own goes on with them.
        own = output / FEATURES
        trainer = Trainer(recipe, output, resume=True, features=own if own.is_dir() else features or folder / FEATURES)
        if not (output / "metrics.json").is_file():
            if accelerator.is_main_process:
                logger.info("%s -> %s", row, output)
            trainer.run()
            with trainer.stop.heard():
                write_report(trainer)
        trainer.accelerator.wait_for_everyone()
        trainer.folder.leave()
        results[row] = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    return {row: results[row] for row in asked}


def _starts_to_run(recipes: dict[str, Recipe], folder: Path) -> dict[str, Recipe]:
    """The common starts that several rows are still to go on from, or one where there is such a run already."""
    new = [recipe for row, recipe in recipes.items() if not (folder / row / RECIPE).is_file()]
    starts = common_starts(recipes.values())
    rows = {name: sum(continues(recipe, start) for recipe in new) for name, start in starts.items()}
    started = {name: (folder / name / RECIPE).is_file() for name in starts}
    return {name: start for name, start in starts.items() if rows[name] > (0 if started[name] else 1)}


def _start_from(finished: Path, output: Path, recipe: Recipe, *, score_again: bool = False) -> None:
    """Make `output` a run of `recipe` that was interrupted where `finished` ends, before or after it was scored."""
    last = checkpoints(finished / "checkpoints")[-1]
    record = {"run": load_run_state(last).run, "made_with": []}

    def write(aside: Path) -> None:
        shutil.copytree(last, aside / "checkpoints" / last.name)
        if score_again:
            forget_scores(aside / "checkpoints" / last.name)
        for name in method_of(recipe.method, recipe.model).prepared:
            if (finished / name).is_dir():
                shutil.copytree(finished / name, aside / name)
        (aside / RECORD).write_text(json.dumps(record), encoding="utf-8")
        (aside / RECIPE).write_text(recipe_text(recipe), encoding="utf-8")

    write_whole(output, write)


def check_comparison(benchmark: str, folder: Path) -> None:
    """Refuse, before the work, a folder whose comparison is not one of this benchmark by this package.

    Raises:
        OSError: A file is there that the comparison would replace, or the folder cannot be written to.
    """
    own = folder / "comparison.json"
    # A comparison of the first edition starts with its benchmark.
    first_edition = f'{{\n "benchmark": "{benchmark}",\n'
    check_output(own, first_edition if holds(own, first_edition) else made_by("compare"))
    for name in ("comparison.md", "comparison.png"):
        check_output(folder / name, "" if own.exists() else made_by("compare"))


def published_rows(recipe: Recipe) -> dict[str, dict[str, float]]:
    """What was published for the recipe's benchmark: row -> column -> fraction; empty where it cannot be compared."""
    comparable = recipe.split == "test" and not recipe.supervised
    return published_results().get(recipe.benchmark, {}) if comparable else {}
