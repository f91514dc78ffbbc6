"""Numbers that mean nothing are refused by name, and what was refused leaves everything as it was."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_bad_input import assert_one_line
from trained import arguments

from cagnet_hf.cli import run
from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.evaluation.calibration import calibration_curve
from cagnet_hf.evaluation.scoring import score
from cagnet_hf.vectors.class_embeddings import check_vectors, load_class_embeddings, save_embedding_table
from cagnet_hf.weights.folders import load_model


@pytest.fixture
def model_folder(trained_run, tmp_path):
    return shutil.copytree(trained_run / "model", tmp_path / "model")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["cagnet.backbone", "classifier", "class_embeddings", "generator"])
def test_weights_that_are_not_finite_are_named(value, part, model_folder):
    weights = load_file(model_folder / "model.safetensors")
    name = next(name for name, values in weights.items() if name.startswith(part) and values.is_floating_point())
    weights[name].view(-1)[0] = value
    save_file(weights, model_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"its weights {name} hold values that are not finite"):
        load_model(str(model_folder))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_calibration_that_is_no_number_is_named(value, model_folder):
    path = model_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"calibration": value}))
    with pytest.raises(ValueError, match="calibration"):
        load_model(str(model_folder))


@pytest.mark.parametrize(
    "field",
    [
        {"image_std": [0.2, 0.0, 0.2]},
        {"image_std": [0.2, math.nan, 0.2]},
        {"image_mean": [math.inf, 0.0, 0.0]},
        {"rescale_factor": math.nan},
    ],
    ids=str,
)
def test_an_image_processor_that_makes_no_numbers_is_named(field, model_folder):
    path = model_folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | field))
    with pytest.raises(ValueError, match=next(iter(field))):
        load_model(str(model_folder))


def test_such_a_model_predicts_nothing(model_folder, tmp_path, load_script, capsys):
    weights = load_file(model_folder / "model.safetensors")
    next(tensor for tensor in weights.values() if tensor.is_floating_point()).view(-1)[0] = math.nan
    save_file(weights, model_folder / "model.safetensors", {"format": "pt"})
    argv = ["--model", str(model_folder), "--dataset", "scenes:0", "--output", str(tmp_path / "scores.json")]
    code = load_script("evaluate").main(argv)
    assert_one_line(code, capsys.readouterr().err, "not finite")
    assert not (tmp_path / "scores.json").exists()


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_scores_that_are_no_numbers_are_no_prediction(
    command, model_folder, tiny_dataset, tmp_path, load_script, capsys
):
    """Of weights that are numbers, but so large that what comes of them is none."""
    weights = load_file(model_folder / "model.safetensors")
    name = next(n for n, values in weights.items() if n.startswith("cagnet.backbone") and values.ndim == 4)
    weights[name].fill_(3e38)
    save_file(weights, model_folder / "model.safetensors", {"format": "pt"})
    Image.new("RGB", (40, 30), (200, 30, 10)).save(tmp_path / "photo.png")
    given = {
        "evaluate": ["--dataset", str(tiny_dataset), "--output", str(tmp_path / "out.json")],
        "predict": [str(tmp_path / "photo.png"), "--output", str(tmp_path / "out")],
    }
    capsys.readouterr()
    code = load_script(command).main(["--model", str(model_folder), *given[command]])
    assert_one_line(code, capsys.readouterr().err, "scores of an image are no numbers")
    assert not list(tmp_path.glob("out*/*")) and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("bias", [math.nan, math.inf])
def test_a_bias_that_is_no_number_adds_no_class(bias, model_folder):
    model, _ = load_model(str(model_folder))
    with pytest.raises(ValueError, match="choose a finite number"):
        model.add_classes(["zebra"], torch.ones(1, model.config.embedding_size), bias=bias)
    assert "zebra" not in model.config.label2id


@pytest.mark.parametrize("value", [1e200, -1e200, 1e-200, 1e39, 1e-50, math.nan, math.inf, 0.0])
def test_vectors_that_cannot_be_stored_are_named(value):
    with pytest.raises(ValueError, match="table: the embedding of class 'cow'"):
        check_vectors("table", ["sheep", "cow"], np.array([[1.0, 2.0], [value, value]]))


@pytest.mark.parametrize("value", [1e30, 1e-30, -5.0, 65504.0])
def test_vectors_that_can_be_stored_are_taken(value):
    check_vectors("table", ["cow"], np.array([[value, 0.0]]))


@pytest.mark.parametrize("suffix", [".json", ".npy"])
@pytest.mark.parametrize("value", [1e200, 1e-200])
def test_a_file_of_such_vectors_is_refused(suffix, value, tmp_path):
    benchmark, path = load_benchmark("scenes"), tmp_path / f"vectors{suffix}"
    names = benchmark.label_names
    if suffix == ".npy":
        np.save(path, np.full((len(names), 4), value))
    else:
        path.write_text(json.dumps({name: [value] * 4 for name in names if name}))
    with pytest.raises(ValueError, match="too large or too small"):
        load_class_embeddings(str(path), benchmark)


def test_a_table_of_such_vectors_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="'cow'"), np.errstate(over="ignore"):
        save_embedding_table(tmp_path / "table.safetensors", ["cow"], np.array([[1e200, 1.0]]))
    assert not list(tmp_path.iterdir())


class Seen:
    """A model that knows no unseen classes."""

    class config:  # noqa: N801
        unseen_ids = ()


def test_a_calibration_without_unseen_classes_is_refused():
    with pytest.raises(ValueError, match="knows no unseen classes"):
        calibration_curve(Seen(), None, None)


class Broken:
    """A dataset whose second image cannot be read."""

    def share(self, *_):
        raise ValueError("image 2: truncated")

    def __len__(self):
        return 2


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("scoring", [score, calibration_curve])
def test_a_refused_evaluation_leaves_the_model_in_its_mode(scoring, training, trained_run):
    model, processor = load_model(str(trained_run / "model"))
    model.train(training)
    with pytest.raises(ValueError, match="truncated"):
        scoring(model, processor, Broken(), progress=False)
    assert model.training is training


def test_an_evaluation_that_breaks_off_in_the_model_leaves_its_mode(trained_run, monkeypatch):
    model, processor = load_model(str(trained_run / "model"))
    model.train()
    from cagnet_hf.data.rows import Rows
    from cagnet_hf.data.scenes import scenes_dataset

    def fail(*_, **__):
        raise ValueError("broken")

    monkeypatch.setattr(type(model), "forward", fail)
    with pytest.raises(ValueError, match="broken"):
        score(model, processor, Rows(scenes_dataset(0, "test").select(range(2)), None), progress=False, batch_size=1)
    assert model.training


# What the machine refuses


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        MemoryError(),
        RecursionError("maximum recursion depth exceeded"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_want_of_memory_and_killed_workers_are_one_line(error, capsys):
    def command():
        raise error

    assert_one_line(run(command), capsys.readouterr().err, "")


def test_a_fault_of_the_program_is_none_of_these():
    def command():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run(command)


def test_a_run_without_memory_leaves_its_last_checkpoint(
    trained_run, tiny_dataset, tmp_path, load_script, capsys, monkeypatch
):
    def full(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("cagnet_hf.training.learner.Learner.backward", full)
    code = load_script("train").main(arguments(tiny_dataset, tmp_path / "run"))
    assert_one_line(code, capsys.readouterr().err, "out of memory")
    assert not (tmp_path / "run" / "model").exists()
