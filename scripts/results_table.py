"""Write tables, figures and model cards from the metrics files under model_cards.

python scripts/results_table.py
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
CARDS = REPOSITORY / "model_cards"
SUPERVISED = "supervised"
ROWS = [
    "spnet",
    "spnet_c",
    "zs3net",
    "cagnet_pi",
    "cagnet_pa",
    "zs3net_st",
    "cagnet_pi_st",
    "cagnet_pa_st",
    "gaussian",
]
COLUMNS = ("S-mIoU", "U-mIoU", "hIoU", "PA")
STUDY_COLUMNS = ("S-mIoU", "U-mIoU", "hIoU", "PA", "MA")
_FILE = re.compile(r"(?P<row>.+)_(?:seed(?P<seed>\d+)(?P<paper>_paper)?|(?P<tuning>tuning))\.json")


def build_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description="Write the tables of README.md and model_cards/README.md and the figures of each benchmark from "
        "model_cards/BENCHMARK/ROW_seedN.json, which are the metrics.json files of train.py, ROW_seedN_paper.json, "
        "which are those of evaluate.py --protocol paper, and ROW_tuning.json, of a run with split=tuning; of the "
        "ablations from model_cards/BENCHMARK/ablations.json, the comparison.json of compare.py --variants. Where "
        "ROW_seedN.yaml holds the recipe of the run, its card ROW_seedN.md is written, too."
    )


def results_of(folder: Path) -> dict[str, dict[str, list[dict]]]:
    """row -> "full", "paper" or "tuning" -> metrics of its runs; rows in the order of the published tables."""
    found: dict[str, dict[str, list[dict]]] = defaultdict(lambda: {"full": [], "paper": [], "tuning": []})
    for path in sorted(folder.glob("*.json")):
        match = _FILE.fullmatch(path.name)
        if match:
            kind = "tuning" if match["tuning"] else "paper" if match["paper"] else "full"
            found[match["row"]][kind].append(json.loads(path.read_text(encoding="utf-8")))
    order = [*ROWS, SUPERVISED]
    return {row: found[row] for row in sorted(found, key=lambda row: order.index(row) if row in order else len(order))}


def title_of(row: str) -> str:
    from cagnet_hf import methods

    return {SUPERVISED: "supervised (upper bound)"}.get(row) or methods.title_of(row)


def results_table(cards: Path) -> str:
    """Markdown of README.md: a line per benchmark and row; mean and, over several seeds, the range."""
    lines = ["| benchmark | system | seeds | " + " | ".join(COLUMNS) + " |", "|---" * (3 + len(COLUMNS)) + "|"]
    for folder in sorted(path for path in cards.iterdir() if path.is_dir()):
        for row, results in results_of(folder).items():
            if results["full"]:
                cells = [_range(run[column] for run in results["full"]) for column in COLUMNS]
                cells = [f"`{folder.name}`", title_of(row), str(len(results["full"])), *cells]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def study_table(folder: Path) -> str:
    """Markdown of a benchmark: every row by both protocols, what it took, and its score on held-out seen classes."""
    head = ["system", "seeds", *STUDY_COLUMNS, "paper: S-mIoU", "U-mIoU", "hIoU", "held out: hIoU", "minutes", "GiB"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row, results in results_of(folder).items():
        runs = results["full"]
        if not runs:
            continue
        cells = [title_of(row), str(len(runs)), *(_range(run[column] for run in runs) for column in STUDY_COLUMNS)]
        cells += [_range(run[column] for run in results["paper"]) for column in ("S-mIoU", "U-mIoU", "hIoU")]
        cells.append(_range(run["hIoU"] for run in results["tuning"]))
        whole = [run for run in runs if all(stage["iterations"] for stage in run.get("stages", [{"iterations": 0}]))]
        minutes = (run["seconds"] / 60 for run in whole)  # not of runs that took their network from another
        cells.append(_range(minutes, digits=1))
        peaks = [max((stage.get("peak_memory_mib", 0) for stage in run.get("stages", [])), default=0) for run in runs]
        cells.append(_range((peak / 1024 for peak in peaks if peak), digits=1))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def ablation_table(comparison: Path) -> str:
    """Markdown of a `comparison.json` that `compare.py --variants` wrote, with what each variant changes and does.

    Seeds differ more than variants do, so the last column pairs them: hIoU less that of the first variant, mean and
    seed by seed.
    """
    compared = json.loads(comparison.read_text(encoding="utf-8"))
    first = next(iter(compared["rows"]))
    head = ["variant", "row", "changed", "seeds", "S-mIoU", "U-mIoU", "hIoU", f"hIoU − that of `{first}`"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, runs in compared["rows"].items():
        row, *keys = compared["variants"][name]
        changed = ", ".join(f"`{key}`" for key in keys) or "–"
        cells = [name, title_of(row), changed, ", ".join(runs)]
        cells += [_range(run[column] for run in runs.values()) for column in ("S-mIoU", "U-mIoU", "hIoU")]
        differences = [run["hIoU"] - compared["rows"][first][seed]["hIoU"] for seed, run in runs.items()]
        cells.append(_differences(differences) if name != first else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def self_training_table(cards: Path) -> str:
    """Markdown of what self-training does to hIoU: a line per benchmark and row that has it."""
    head = ["benchmark", "system", "by self-training alone", "with what follows"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for folder in sorted(path for path in cards.iterdir() if path.is_dir()):
        for row, results in results_of(folder).items():
            stages = [{stage["name"]: stage for stage in run.get("stages", [])} for run in results["full"]]
            cells = [_gains(stages, stage) for stage in ("self_train", "finetune_after_self_train")]
            if cells[0] != "–":
                lines.append(f"| `{folder.name}` | {title_of(row)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _gains(stages: list[dict[str, dict]], name: str) -> str:
    """hIoU of the runs after a stage less that before self-training; "–" for runs that have no such stage."""
    after = [run for run in stages if name in run]
    gains = [run[name]["metrics"]["hIoU"] - run["finetune"]["metrics"]["hIoU"] for run in after]
    return _differences(gains) if gains else "–"


def _differences(values: list[float]) -> str:
    """Mean and, of several, each of them."""
    rounded = (round(value, 3) + 0.0 for value in (sum(values) / len(values), *values))  # no −0.000
    mean, *each = (f"{value:+.3f}".replace("-", "−") for value in rounded)
    return mean if len(each) == 1 else f"{mean} ({', '.join(each)})"


def _range(values: Iterable[float | None], digits: int = 3) -> str:
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    mean = f"{sum(values) / len(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def draw_figures(folder: Path) -> None:
    """`seen_unseen.png` and `per_class.png` of a benchmark."""
    from cagnet_hf.apps.charts import class_comparison, seen_unseen_scatter

    runs = {title_of(row): results["full"] for row, results in results_of(folder).items() if results["full"]}
    points = {title: [(run["S-mIoU"], run["U-mIoU"]) for run in found] for title, found in runs.items()}
    seen_unseen_scatter(points, folder / "seen_unseen.png", title=folder.name)
    classes = next(iter(runs.values()))[0]["per_class"]
    means = {title: {name: _mean_iou(found, name) for name in classes} for title, found in runs.items()}
    unseen = [name for name, entry in classes.items() if not entry["seen"]]
    class_comparison(means, unseen, folder / "per_class.png", title=folder.name)


def _mean_iou(runs: list[dict], name: str) -> float | None:
    values = [run["per_class"][name]["iou"] for run in runs if run["per_class"][name]["iou"] is not None]
    return sum(values) / len(values) if values else None


def with_block(text: str, name: str, table: str) -> str:
    """The text with the table between its marks `<!-- NAME -->` and `<!-- /NAME -->`."""
    block = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
    text, count = block.subn(lambda _: table, text)
    if not count:
        raise ValueError(f"no place for a table: write <!-- {name} --> and <!-- /{name} -->")
    return text


def cards_of_runs(folder: Path) -> dict[Path, str]:
    """The card of every run whose recipe lies beside its metrics, by the card's file."""
    from cagnet_hf.hub.cards.trained import model_card

    cards = {}
    for path in sorted(folder.glob("*/*_seed*.yaml")):
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        metrics = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        cards[path.with_suffix(".md")] = model_card(recipe, metrics)
    return cards


def main(argv: list[str] | None = None) -> int:
    build_parser().parse_args(argv)
    cards, readme, study = cards_of_runs(CARDS), REPOSITORY / "README.md", CARDS / "README.md"
    overview = with_block(readme.read_text("utf-8"), "results", results_table(CARDS))
    text = study.read_text("utf-8")
    folders = sorted({path.parent for path in CARDS.glob("*/*_seed*.json")})
    for folder in folders:
        text = with_block(text, folder.name, study_table(folder))
    for comparison in sorted(CARDS.glob("*/ablations.json")):
        text = with_block(text, f"{comparison.parent.name} ablations", ablation_table(comparison))
    text = with_block(text, "self-training", self_training_table(CARDS))
    for path, content in {**cards, readme: overview, study: text}.items():
        path.write_text(content, encoding="utf-8")
    for folder in folders:
        draw_figures(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
