"""What recipes there are and what their keys mean, as text. PyTorch is imported for the keys of one recipe alone."""

import json
from collections.abc import Mapping
from itertools import groupby, takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any

from ..methods.options import described_keys, free_keys
from ..training.recipe_files import METHODS, RECIPES_DIR, load_recipe, recipe_names

_COLUMNS = {"S-mIoU": ".3f", "U-mIoU": ".3f", "hIoU": ".3f", "minutes": ".0f"}


def recipe_list() -> str:
    """Every recipe by benchmark, what benchmarks and methods are, and what was measured with the recipes."""
    path = Path(__file__).with_name("measured_results.json")  # by scripts/results_table.py, from model_cards
    measured = json.loads(path.read_text(encoding="utf-8"))
    rows = [name.split("/") for name in recipe_names()]
    lines = ["A recipe is called BENCHMARK/METHOD; a benchmark alone means its cagnet_pi.", "", "methods:"]
    lines += [
        f"  {row:14}{_head(RECIPES_DIR / METHODS / f'{row}.yaml')}" for row in dict.fromkeys(map(itemgetter(1), rows))
    ]
    for benchmark, group in groupby(rows, key=itemgetter(0)):
        names = [f"{benchmark}/{row}" for _, row in group]
        lines += ["", _head(RECIPES_DIR / benchmark / "benchmark.yaml")]
        known = [name for name in names if name in measured]
        if known:
            lines.append(f"  {'measured, on one busy core:':30}{''.join(f'{column:>8}' for column in _COLUMNS)}")
        for name in known:
            found = ((measured[name].get(column), spec) for column, spec in _COLUMNS.items())
            cells = ("" if value is None else format(value, spec) for value, spec in found)
            lines.append(f"  {name:30}{''.join(f'{cell:>8}' for cell in cells)}".rstrip())
        lines += [f"  {name}" for name in names if name not in measured]
    return "\n".join([*lines, "", "`cagnet-hf recipes NAME` lists the keys of a recipe."])


def recipe_page(name: str, model_fields: Mapping[str, str]) -> str:
    """The keys of a recipe as `train` takes them, `key=value`, each with its meaning.

    Args:
        name: A recipe's name or file.
        model_fields: What each field of a model's configuration means. A field that the recipe does not set has no
            value in the list.

    Raises:
        ValueError: There is no such recipe.
    """
    recipe = load_recipe(name)
    tree, lines = recipe.model_dump(mode="json"), []
    known = dict(described_keys(type(recipe), tree))
    known |= {f"model.{key}": meaning for key, meaning in model_fields.items() if key in free_keys()["model"]}
    for key, meaning in known.items():
        value: Any = tree
        for part in key.split("."):
            value = value.get(part, ...) if isinstance(value, dict) else ...
        if isinstance(value, dict) and any(other.startswith(f"{key}.") for other in known):
            continue  # its keys follow
        if value is not ...:
            key += f"={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        lines.append(f"{key:46}  {meaning}".rstrip())
    return "\n".join(lines)


def _head(path: Path) -> str:
    """The comment at the head of a YAML file."""
    comment = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return " ".join(line.removeprefix("# ") for line in comment)
