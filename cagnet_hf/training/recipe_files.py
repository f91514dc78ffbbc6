"""From a recipe's name or file, and `key=value` overrides, to the recipe.

A recipe file may `include` others (paths relative to itself); later files override earlier ones, key by key. The name
`BENCHMARK/METHOD` joins three of them: the benchmark's facts, the benchmark's schedule for the method, the method.
"""

from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import ValidationError

from ..data.benchmarks import CLASS_TABLE
from ..data.names import did_you_mean, nearest_keys
from ..files import parse_yaml, real_path
from ..methods import method_of, methods
from ..methods.options import (
    ForeignOption,
    Options,
    Recipe,
    RecipeError,
    described_keys,
    free_keys,
    nested_options,
)

RECIPES_DIR = Path(__file__).resolve().parents[1] / "recipes"
METHODS = "methods"
DEFAULT_METHOD = "cagnet_pi"  # `--recipe scenes` means scenes/cagnet_pi


def load_recipe(name_or_path: str, overrides: list[str] = ()) -> Recipe:
    """Read a recipe by name (`scenes`, `pascal_voc_edge/cagnet_pi`) or file, with `key=value` overrides.

    Keys are dotted (`stages.finetune.iterations=100`), values YAML.

    Raises:
        RecipeError: One line naming the file, the key and the nearest known key.
    """
    name, tree = _find(name_or_path)
    ends = [override for override in overrides if override.startswith("until=")]
    for override in ends:
        tree = _overridden(tree, override)
    _keep_stages(name, tree, overrides)
    for override in overrides:
        if override not in ends:
            tree = _overridden(tree, override)
    _drop_null_stages(tree)
    _leave_the_last_model(tree)
    return parse_recipe(tree, name)


def parse_recipe(tree: dict, where: str) -> Recipe:
    """The recipe of a tree of keys and values, of the class that its method names.

    Args:
        where: What an error calls the tree.

    Raises:
        RecipeError: One line naming the key and the nearest known key.
    """
    kind, dataset = Recipe, tree.get("dataset")
    if tree.get("benchmark") is None and isinstance(dataset, str) and (Path(dataset) / CLASS_TABLE).is_file():
        tree = tree | {"benchmark": dataset}  # a prepared folder is its own benchmark
    missing = [key for key in ("benchmark", "method", "stages") if key not in tree]
    if missing and all(any(key in method.recipe_class.model_fields for method in methods()) for key in tree):
        raise RecipeError(f"{where}: no {', '.join(missing)}; a recipe has a benchmark, a method and stages")
    if isinstance(tree.get("method"), str) and isinstance(tree.get("model", {}), dict):
        try:
            kind = method_of(tree["method"], tree.get("model", {})).recipe_class
        except ValueError as error:
            raise RecipeError(f"{where}: {error}") from None
        tree = _without_foreign_defaults(tree, kind, [method.recipe_class for method in methods()], f"{where}: ")
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_first_problem(error, kind, tree)}") from None


def _without_foreign_defaults(tree: dict, own: type[Options], others: list[type[Options]], where: str) -> dict:
    """The tree without the options of other methods that stand at their defaults: recipes of the first edition, whose
    methods had all options in common, wrote them out.

    Raises:
        RecipeError: Another method's option has another value.
    """
    kept = {}
    for key, value in tree.items():
        having = [other for other in others if key in other.model_fields]
        if key not in own.model_fields and having:
            if value != _default(having[0], key):
                raise ForeignOption(f"{where}{key} is an option of another method than this recipe's")
            continue
        nested = nested_options(own, key)
        if nested is not None and isinstance(value, dict):
            deeper = [options for other in having if (options := nested_options(other, key)) is not None]
            by_name = get_origin(own.model_fields[key].annotation) is dict
            parts = value if by_name else {None: value}
            parts = {
                name: _without_foreign_defaults(part, nested, deeper, f"{where}{key}.{f'{name}.' if name else ''}")
                if isinstance(part, dict)
                else part
                for name, part in parts.items()
            }
            value = parts if by_name else parts[None]
        kept[key] = value
    return kept


def _default(options: type[Options], key: str) -> Any:
    value = options.model_fields[key].get_default(call_default_factory=True)
    return value.model_dump(mode="json") if isinstance(value, Options) else value


def _find(name_or_path: str) -> tuple[str, dict]:
    """(what to call it, its keys) of a file or of the parts that a name joins."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path.name, _read(path)
    known = recipe_names()
    for name in (name_or_path, f"{name_or_path}/{DEFAULT_METHOD}"):
        if name in known:
            return name, _join(*name.split("/"))
    hint = did_you_mean(name_or_path, known) or f"; known: {', '.join(known)}"
    raise RecipeError(f"no recipe {name_or_path!r}{hint}")


def _join(benchmark: str, method_name: str) -> dict:
    method = _read(RECIPES_DIR / METHODS / f"{method_name}.yaml")
    schedule = _read(RECIPES_DIR / benchmark / f"{method.pop('schedule')}.yaml")
    return _merged(_merged(_read(RECIPES_DIR / benchmark / "benchmark.yaml"), schedule), method)


def stage_of_key(override: str) -> str | None:
    """The stage that an override `stages.STAGE.KEY=value` or `stages.STAGE=value` speaks of."""
    parts = override.partition("=")[0].split(".")
    return parts[1] if parts[0] == "stages" and len(parts) > 1 else None


def _keep_stages(name: str, tree: dict, overrides: list[str]) -> None:
    """`until: STAGE` drops the stages that a schedule has beyond it; an override may only speak of what is left."""
    _drop_null_stages(tree)
    until, stages = tree.pop("until", None), tree.get("stages")
    if not isinstance(stages, dict):
        return
    names = list(stages)
    if until is not None and until not in names:
        raise RecipeError(f"{name}: until={until} is no stage{did_you_mean(until, names)}; stages: {', '.join(names)}")
    kept = names if until is None else names[: names.index(until) + 1]
    tree["stages"] = {stage: stages[stage] for stage in kept}
    for override in overrides:
        stage = stage_of_key(override)
        if stage is not None and stage not in kept:
            raise RecipeError(
                f"{name}: {override!r}: no stage {stage!r} in this run{did_you_mean(stage, kept)}; "
                f"stages: {', '.join(kept)}"
            )


def _drop_null_stages(tree: dict) -> None:
    """`STAGE: null` leaves out a stage that an included file has."""
    if isinstance(tree.get("stages"), dict):
        tree["stages"] = {name: stage for name, stage in tree["stages"].items() if stage is not None}


def _leave_the_last_model(tree: dict) -> None:
    """The recipe's model is that of its last stage, whichever stages were left out."""
    stages, model = tree.get("stages"), tree.get("model", {})
    trees = [model, *(stages.values() if isinstance(stages, dict) else [None])]
    if len(trees) < 2 or not all(isinstance(part, dict) and isinstance(part.get("model", {}), dict) for part in trees):
        return  # what is wrong is found where the recipe is read
    last = model | trees[-1].get("model", {})
    if last == model:
        return
    for name, stage in stages.items():
        own = model | stage.get("model", {})
        stages[name] = stage | {"model": {key: value for key, value in own.items() if last.get(key) != value}}
    tree["model"] = last


def recipe_names() -> list[str]:
    """Every `BENCHMARK/METHOD` whose benchmark has the method's schedule."""
    methods = {path.stem: _read(path)["schedule"] for path in sorted((RECIPES_DIR / METHODS).glob("*.yaml"))}
    benchmarks = sorted(path.parent.name for path in RECIPES_DIR.glob("*/benchmark.yaml"))
    return [
        f"{benchmark}/{method}"
        for benchmark in benchmarks
        for method, schedule in methods.items()
        if (RECIPES_DIR / benchmark / f"{schedule}.yaml").is_file()
    ]


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict:
    if path in seen:
        raise RecipeError(f"{path}: includes itself")
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values")
    merged: dict = {}
    includes = tree.pop("include", [])
    if not isinstance(includes, list) or not all(isinstance(include, str) for include in includes):
        raise RecipeError(f"{path}: include is a list of files, got {includes!r}")
    for include in includes:
        merged = _merged(merged, _read(real_path(path.parent / include), (*seen, path)))
    return _merged(merged, tree)


def _merged(base: dict, over: dict) -> dict:
    """A new tree: aliases in a file share values, not what is merged into them."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = _merged(base[key], value) if both else value
    return result


def _overridden(tree: dict, override: str) -> dict:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"{override!r} is no override: write key=value")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        raise RecipeError(f"{override!r}: the value is not YAML") from None
    *parents, leaf = key.split(".")
    result = dict(tree)
    node = result
    for part in parents:
        child = node.get(part, {})
        if not isinstance(child, dict):
            raise RecipeError(f"{override!r}: {part!r} holds a value, not keys")
        node[part] = dict(child)
        node = node[part]
    node[leaf] = value
    return result


def _first_problem(error: ValidationError, kind: type[Recipe], tree: dict) -> str:
    problems = error.errors()
    # A misspelt key is also a missing one; its own name says more.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    where = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    if problem["type"] == "extra_forbidden":
        known = [*described_keys(kind, tree)]
        known += [(f"{section}.{key}", "") for section, keys in free_keys().items() for key in keys]
        return f"unknown key {where!r}{nearest_keys(where, known)}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = f", got {given!r}" if where and not isinstance(given, dict) else ""
    return f"{where}: {message}{shown}" if where else message
