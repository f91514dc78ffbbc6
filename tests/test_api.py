"""The package as a program sees it: what `import cagnet_hf` gives, and that the commands call the same functions."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from trained import SCHEDULE, assert_equal_runs

import cagnet_hf
from cagnet_hf.methods.options import RecipeError

NAMES = {
    "METRIC_PATH",
    "CaGNetConfig",
    "CaGNetForSemanticSegmentation",
    "CaGNetImageProcessor",
    "CaGNetModel",
    "convert_state_dict",
    "evaluate",
    "fit",
    "from_names",
    "load_model",
    "segment",
    "train",
}
SCHEDULE_AS_KEYS = {
    "stages": {
        "pretrain": {"iterations": 12, "batch_size": 2},
        "finetune": {"iterations": 24, "batch_size": 2, "real_block": 3, "synthetic_block": 3},
    },
    "checkpoint_every": 4,
    "checkpoints_kept": 100,
    "log_every": 3,
    "num_workers": 0,
    "trackers": [],
}


@pytest.fixture(scope="module")
def run(tiny_dataset, tmp_path_factory, one_thread) -> "cagnet_hf.apps.training.Run":
    """A run from Python, with the recipe of `trained_run`."""
    output = tmp_path_factory.mktemp("api") / "run"
    return cagnet_hf.train("scenes", output, seed=0, dataset=tiny_dataset, **SCHEDULE_AS_KEYS)


def test_the_package_offers_what_users_import():
    assert {name for name in cagnet_hf.__all__ if name != "__version__"} == NAMES
    assert set(dir(cagnet_hf)) >= NAMES
    assert all(getattr(cagnet_hf, name) is not None for name in NAMES)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'cagnet_hf' has no attribute 'segmenter'"):
        _ = cagnet_hf.segmenter


# Importing


def in_a_process(program: str, **options) -> str:
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, **options)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_importing_the_package_registers_its_classes(trained_run):
    program = (
        "import cagnet_hf\n"
        "from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation\n"
        f"folder = {str(trained_run / 'model')!r}\n"
        "print(type(AutoModelForSemanticSegmentation.from_pretrained(folder)).__module__)\n"
        "print(type(AutoImageProcessor.from_pretrained(folder)).__module__)\n"
    )
    assert in_a_process(program).split() == [
        "cagnet_hf.model.modeling_cagnet",
        "cagnet_hf.model.image_processing_cagnet",
    ]


@pytest.mark.parametrize("program", ["/usr/bin/cagnet-hf", str(REPOSITORY / "scripts" / "train.py")])
def test_a_command_imports_what_it_needs_when_it_needs_it(program):
    lines = f"import sys\nsys.argv = [{program!r}]\nimport cagnet_hf\nprint('torch' in sys.modules)\n"
    assert in_a_process(lines) == "False"


def test_the_package_as_a_program_answers_at_once():
    finished = subprocess.run([sys.executable, "-X", "importtime", "-m", "cagnet_hf"], capture_output=True, text=True)
    assert finished.stdout.startswith("usage: cagnet-hf COMMAND")
    assert " torch\n" not in finished.stderr


@pytest.mark.parametrize("program", ["train.py", "-c", ""])
def test_a_program_of_a_user_is_no_command_of_the_package(program, tmp_path):
    lines = f"import sys\nsys.argv = [{program!r}]\nimport cagnet_hf\nprint('transformers' in sys.modules)\n"
    (tmp_path / "scripts").mkdir()
    assert in_a_process(lines, cwd=tmp_path / "scripts") == "True"


# Training


def test_training_from_python_is_training_by_the_command(run, trained_run):
    assert_equal_runs(run.output_dir, trained_run)


def test_a_run_has_what_it_wrote(run):
    assert run.metrics == json.loads((run.output_dir / "metrics.json").read_text())
    saved, _ = cagnet_hf.load_model(str(run.output_dir / "model"))
    weights = run.model.state_dict()
    assert all(torch.equal(values, weights[name]) for name, values in saved.state_dict().items())
    assert not run.model.training


def test_a_run_segments_images(run, tiny_dataset):
    (prediction,) = cagnet_hf.segment(run.model, run.processor, [Image.new("RGB", (40, 30), (200, 60, 50))])
    assert prediction.label_map.shape == (30, 40)


def test_a_dotted_key_is_the_key_that_nested_dictionaries_name(tmp_path):
    for keys in ({"stages": {"pretrain": {"iterations": "many"}}}, {"stages.pretrain.iterations": "many"}):
        with pytest.raises(RecipeError, match=r"stages.pretrain.iterations: .* got 'many'"):
            cagnet_hf.train("scenes", tmp_path, **keys)


def test_a_misspelt_key_is_refused_with_the_nearest_one(tmp_path):
    with pytest.raises(RecipeError, match="unknown key 'sead'; did you mean 'seed'"):
        cagnet_hf.train("scenes", tmp_path, sead=1)


def test_a_folder_with_a_run_is_kept(run, tiny_dataset):
    with pytest.raises(RecipeError, match="holds a run"):
        cagnet_hf.train("scenes", run.output_dir, *SCHEDULE, dataset=tiny_dataset)


def test_a_finished_run_resumes_to_itself(run, tiny_dataset):
    again = cagnet_hf.train("scenes", run.output_dir, dataset=tiny_dataset, resume=True, **SCHEDULE_AS_KEYS)
    assert again.metrics == run.metrics


# Scoring


def test_a_folder_and_its_model_have_the_scores_of_training(run, tiny_dataset):
    expected = {key: value for key, value in run.metrics.items() if key not in ("stages", "seconds")}
    assert cagnet_hf.evaluate(run.output_dir / "model", tiny_dataset) == expected
    assert cagnet_hf.evaluate(run.model, tiny_dataset, processor=run.processor) == expected


def test_a_calibration_is_that_of_one_evaluation(run, tiny_dataset):
    calibrated = cagnet_hf.evaluate(run.model, tiny_dataset, processor=run.processor, gamma=1)
    assert calibrated["S-mIoU"] == 0
    assert run.model.config.calibration == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"gamma": 1.5}, "gamma 1.5: .* choose a number from -1 to 1"),
        ({"batch_size": 0}, "batch_size 0: choose a number of at least 1"),
        ({"processor": None}, "a model is scored with its image processor"),
        ({"split": "val"}, "no split 'val'; it has train, test"),
    ],
)
def test_what_cannot_be_scored_is_refused(run, tiny_dataset, options, reason):
    with pytest.raises(ValueError, match=reason):
        cagnet_hf.evaluate(run.model, tiny_dataset, **({"processor": run.processor} | options))


# Messages


def test_a_program_hears_nothing_it_did_not_ask_for(run, tiny_dataset, capsys):
    cagnet_hf.train("scenes", run.output_dir, dataset=tiny_dataset, resume=True, **SCHEDULE_AS_KEYS)
    assert capsys.readouterr().out == ""


def test_messages_go_through_the_logger_of_the_package(run, tiny_dataset, caplog):
    with caplog.at_level(logging.INFO, logger="cagnet_hf"):
        cagnet_hf.train("scenes", run.output_dir, dataset=tiny_dataset, resume=True, **SCHEDULE_AS_KEYS)
    assert f"Wrote {run.output_dir}" in caplog.messages
    assert {Path(record.name).parts[0].partition(".")[0] for record in caplog.records} == {"cagnet_hf"}
