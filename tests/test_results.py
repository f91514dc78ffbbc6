"""The numbers of README.md are those of the metrics files that the commands wrote."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

REPOSITORY = Path(__file__).resolve().parents[1]
CARDS = REPOSITORY / "model_cards"
COLUMNS = ("S-mIoU", "U-mIoU", "hIoU", "mIoU", "PA", "MA", "U-PA", "U-MA")


def test_the_table_of_the_readme_is_made_from_the_metrics_files(load_script):
    block = re.search(r"<!-- results -->\n(.*?)<!-- /results -->", (REPOSITORY / "README.md").read_text("utf-8"), re.S)

    assert block.group(1) == load_script("results_table").results_table(CARDS)


def test_the_cards_are_made_from_metrics_and_recipes(load_script):
    cards = load_script("results_table").cards_of_runs(CARDS)

    assert {path: path.read_text("utf-8") for path in sorted(CARDS.glob("*/*_seed*.md"))} == cards
    for path in cards:
        scores = {result.metric_name: result.metric_value for result in ModelCard.load(path).data.eval_results}
        metrics = json.loads(path.with_suffix(".json").read_text("utf-8"))
        assert scores == {f"{name} (protocol full)": metrics[name] for name in COLUMNS}


@pytest.mark.parametrize("path", sorted(CARDS.glob("*/*_seed*.json")), ids=lambda path: path.stem)
def test_a_metrics_file_is_consistent_in_itself(path):
    metrics = json.loads(path.read_text("utf-8"))
    seen, unseen = metrics["S-mIoU"], metrics["U-mIoU"]

    assert metrics["hIoU"] == pytest.approx(2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0)
    for group, is_seen in (("S-mIoU", True), ("U-mIoU", False)):
        values = [c["iou"] for c in metrics["per_class"].values() if c["seen"] is is_seen and c["iou"] is not None]
        assert metrics[group] == pytest.approx(sum(values) / len(values))
