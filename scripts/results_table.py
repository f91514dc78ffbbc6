"""Write the table of measured results into README.md and model cards beside the metrics files under model_cards.

python scripts/results_table.py
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
COLUMNS = ("S-mIoU", "U-mIoU", "hIoU", "PA")
_FILE = re.compile(r"(?P<row>.+)_seed(?P<seed>\d+)(?P<variant>_.+)?\.json")
_BLOCK = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)


def build_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description="Write the results table of README.md from model_cards/BENCHMARK/ROW_seedN[_VARIANT].json, "
        "which are the metrics.json files of train.py and evaluate.py; and, where ROW_seedN.yaml holds the recipe of "
        "the run, its card ROW_seedN.md."
    )


def results_table(cards: Path) -> str:
    """Markdown: one row per benchmark, row and stage or variant; mean and, over several seeds, the range."""
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for path in sorted(cards.glob("*/*_seed*.json")):
        match = _FILE.fullmatch(path.name)
        metrics = json.loads(path.read_text(encoding="utf-8"))
        row = match["row"] + (match["variant"] or "").replace("_gamma", ", γ ").replace("_", ", ")
        trained = [stage for stage in metrics.get("stages", []) if stage["iterations"]]
        for stage in trained[:-1]:
            groups[path.parent.name, f"{row}, after {stage['name']}"].append(stage["metrics"])
        groups[path.parent.name, row].append(metrics)
    lines = ["| benchmark | system | seeds | " + " | ".join(COLUMNS) + " |", "|---" * (3 + len(COLUMNS)) + "|"]
    for (benchmark, row), runs in groups.items():
        cells = [_cell([run[column] for run in runs]) for column in COLUMNS]
        lines.append(f"| `{benchmark}` | {row} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cards_of_runs(folder: Path) -> dict[Path, str]:
    """The card of every run whose recipe lies beside its metrics, by the card's file."""
    from cagnet_hf.cards.trained import model_card

    cards = {}
    for path in sorted(folder.glob("*/*_seed*.yaml")):
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        metrics = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        cards[path.with_suffix(".md")] = model_card(recipe, metrics)
    return cards


def _cell(values: list[float]) -> str:
    mean = f"{sum(values) / len(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}–{max(values):.3f})"


def main(argv: list[str] | None = None) -> int:
    build_parser().parse_args(argv)
    for path, card in cards_of_runs(REPOSITORY / "model_cards").items():
        path.write_text(card, encoding="utf-8")
    readme = REPOSITORY / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(_BLOCK.sub(results_table(REPOSITORY / "model_cards"), text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
