"""Choosing γ of SPNet-c: one pass over the images scores every γ of a grid as evaluate.py --gamma would."""

import json
import shutil

import pytest
from huggingface_hub import ModelCard
from trained import arguments

from cagnet_hf.apps import evaluation
from cagnet_hf.data.sources import open_dataset
from cagnet_hf.evaluation.calibration import GAMMAS, best_gamma, calibration_curve
from cagnet_hf.evaluation.scoring import score
from cagnet_hf.weights.folders import load_model


@pytest.fixture(scope="module")
def runs(tiny_dataset, tmp_path_factory, load_script, one_thread):
    """Folder with two projections, `spnet` and `tuning`, the latter trained without some seen classes."""
    folder = tmp_path_factory.mktemp("projections")
    for name, keys in (("spnet", []), ("tuning", ["split=tuning"])):
        command = arguments(tiny_dataset, folder / name, *keys, recipe="scenes/spnet")
        assert load_script("train").main(command) == 0
    return folder


@pytest.fixture
def calibrate(load_script, runs, tiny_dataset, capsys):
    """`calibrate(*arguments)`: (exit code, output, error) on the tuning model."""

    def run(*given, model="tuning"):
        command = ["--model", str(runs / model / "model"), "--dataset", str(tiny_dataset), *map(str, given)]
        code = load_script("calibrate").main(command)
        printed = capsys.readouterr()
        return code, printed.out, printed.err.replace("\r", "\n").splitlines()[-1] if printed.err else ""

    return run


def test_every_gamma_scores_what_a_model_of_that_calibration_does(runs, tiny_dataset):
    model, processor = load_model(str(runs / "spnet" / "model"))
    images = open_dataset(str(tiny_dataset), "test")
    curve = calibration_curve(model, processor, images, gammas=(0.0, 0.05, 0.4, -0.2), progress=False)
    assert curve[-0.2] != curve[0.0] != curve[0.4]
    assert curve[-0.2]["per_class"] != curve[0.0]["per_class"]
    for gamma, metrics in curve.items():
        model.config.calibration = gamma
        scored = score(model, processor, images, progress=False)
        assert metrics == {key: scored[key] for key in metrics}


def test_the_highest_hiou_is_chosen_and_of_equals_the_nearest_to_zero():
    curve = {0.4: {"hIoU": 0.3}, 0.0: {"hIoU": None}, 0.2: {"hIoU": 0.3}, 0.6: {"hIoU": 0.1}}
    assert best_gamma(curve) == 0.2
    assert best_gamma(curve | {-0.1: {"hIoU": 0.3}}) == -0.1
    assert best_gamma(curve | {-0.1: {"hIoU": 0.31}, 0.1: {"hIoU": 0.3}}) == -0.1


@pytest.mark.parametrize("best", [-0.95, 0.95, 0.9, -0.9, 0.0])
def test_a_choice_at_the_edge_of_the_grid_is_warned_about(best, runs, tiny_dataset, monkeypatch, caplog):
    curve = {gamma: {"hIoU": float(gamma == best)} for gamma in GAMMAS}
    monkeypatch.setattr(evaluation, "calibration_curve", lambda *_: curve)
    chosen, _ = evaluation.choose_calibration(str(runs / "tuning" / "model"), str(tiny_dataset))
    assert chosen == best
    warned = "lies at the edge of the grid" in caplog.text
    assert warned == (abs(best) == 0.95)
    assert not warned or f"--gamma {0.98 if best > 0 else -0.98}" in caplog.text


def test_the_command_shows_the_grid_marks_the_choice_and_applies_it(calibrate, runs, tmp_path):
    shutil.copytree(runs / "spnet" / "model", tmp_path / "model")
    code, out, _ = calibrate("--apply_to", tmp_path / "model", "--output", tmp_path / "curve.json")
    assert code == 0
    written = json.loads((tmp_path / "curve.json").read_text())
    assert len(written["curve"]) == len(GAMMAS)
    (marked,) = (line for line in out.splitlines() if line.startswith("*"))
    assert f"gamma {written['chosen']:.2f}" in marked
    model, _ = load_model(str(tmp_path / "model"))
    assert model.config.calibration == written["chosen"]


def test_the_card_tells_the_calibration_and_announces_no_score_of_another(calibrate, runs, tmp_path):
    shutil.copytree(runs / "spnet" / "model", tmp_path / "model")
    texts = []
    for _ in range(2):
        assert calibrate("--apply_to", tmp_path / "model")[0] == 0
        texts.append((tmp_path / "model" / "README.md").read_text())
    gamma = json.loads((tmp_path / "model" / "config.json").read_text())["calibration"]
    assert f"γ = {gamma:g}, chosen on held-out seen classes" in texts[0]
    assert "The scores on this card were measured with γ = 0; score anew." in texts[0]
    assert texts[1] == texts[0]
    card = ModelCard(texts[0])
    assert card.data.eval_results is None
    assert card.data.tags == ModelCard.load(runs / "spnet" / "model" / "README.md").data.tags
    assert "## Results" in card.text


def test_a_model_that_knows_the_unseen_classes_is_no_model_to_choose_on(calibrate, runs):
    before = (runs / "spnet" / "model" / "config.json").read_text()
    code, _, error = calibrate("--apply_to", runs / "spnet" / "model", model="spnet")
    assert code == 2
    assert "choose on a model trained with split=tuning" in error
    assert (runs / "spnet" / "model" / "config.json").read_text() == before


def test_a_folder_that_holds_no_model_is_named(calibrate, tmp_path):
    code, _, error = calibrate("--apply_to", tmp_path)
    assert code == 2
    assert str(tmp_path / "config.json") in error
