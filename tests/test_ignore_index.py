"""One `ignore_index`: whatever a model calls pixels without a class, it learns and scores the same."""

import json

import pytest
from safetensors.torch import load_file
from trained import arguments


@pytest.mark.parametrize("ignore_index", [-100, 1000])
def test_any_ignore_index_trains_and_scores_the_same_model(
    trained_run, tiny_dataset, load_script, tmp_path, ignore_index
):
    argv = arguments(tiny_dataset, tmp_path / "run", f"model.ignore_index={ignore_index}")
    assert load_script("train").main(argv) == 0
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["ignore_index"] == ignore_index
    expected, weights = (load_file(run / "model" / "model.safetensors") for run in (trained_run, tmp_path / "run"))
    assert all((weights[name] == expected[name]).all() for name in expected)
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (trained_run, tmp_path / "run")]
    assert metrics[0]["per_class"] == metrics[1]["per_class"]
