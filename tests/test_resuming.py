"""Interrupted runs go on to the same numbers; several processes train one model."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import load
from conftest import REPOSITORY
from safetensors.torch import load_file
from trained import FINETUNE, PRETRAIN, arguments, assert_equal_runs

from cagnet_hf.data.sources import open_dataset
from cagnet_hf.evaluation.scoring import score
from cagnet_hf.training.checkpoints import forget_scores
from cagnet_hf.training.loop import StageRun
from cagnet_hf.weights.folders import load_model

SCRIPT = str(REPOSITORY / "scripts" / "train.py")
PATIENCE = 1800  # seconds: bounds a hang, whatever else the machine does
LAST_OF_STAGE = {0: f"step-00-{PRETRAIN:08d}", 1: f"step-01-{FINETUNE:08d}"}


@pytest.fixture(scope="module")
def environment(tiny_dataset) -> dict[str, str]:
    """What a run in a process of its own needs to add up in the same order, and to stay off the accelerator."""
    cache = str(tiny_dataset.parent / "cache")
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_DATASETS_CACHE": cache}


@pytest.fixture
def resume(load_script, tiny_dataset, one_thread):
    """`resume(output)` goes on with a run in this process."""

    def run(output: Path) -> int:
        return load_script("train").main(arguments(tiny_dataset, output, resume=True))

    return run


# Runs a script that is killed when it is about to give a file or folder this name. Nothing has to watch the process
# from outside, which would come too late on a busy machine.
KILLED_BEFORE_RENAMING = """
import os, runpy, signal, sys
name, *sys.argv = sys.argv[1:]
def kill(event, arguments):
    if event == "os.rename" and os.path.basename(os.fspath(arguments[1])) == name:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("stage", [0, 1], ids=["pretrain", "finetune"])
def test_a_killed_run_resumes_to_the_same_numbers(stage, tmp_path, tiny_dataset, trained_run, environment, resume):
    output, second = tmp_path / "run", f"step-{stage:02d}-00000008"
    program = [sys.executable, "-c", KILLED_BEFORE_RENAMING, second]
    finished = subprocess.run([*program, SCRIPT, *arguments(tiny_dataset, output)], env=environment)
    assert finished.returncode == -signal.SIGKILL
    (first,) = (output / "checkpoints").glob(f"step-{stage:02d}-*")
    assert first.name < second < LAST_OF_STAGE[stage]  # in the middle
    assert list((output / "checkpoints").glob(f".{second}*"))  # and half a checkpoint lies there
    assert not (output / "metrics.json").exists()
    assert resume(output) == 0
    assert_equal_runs(output, trained_run)


@pytest.fixture
def interrupted(trained_run, tmp_path):
    """`interrupted(*checkpoints)`: a copy of the run as if it had been killed with these checkpoints written."""

    def copy(*names: str) -> Path:
        shutil.copytree(trained_run, tmp_path / "run")
        for leftover in ("metrics.json", "model/model.safetensors"):
            (tmp_path / "run" / leftover).unlink()
        for folder in (tmp_path / "run" / "checkpoints").iterdir():
            if folder.name not in names:
                shutil.rmtree(folder)
            else:
                forget_scores(folder)
        return tmp_path / "run"

    return copy


@pytest.mark.parametrize("newest", ["step-00-00000008", LAST_OF_STAGE[0], "step-01-00000020", LAST_OF_STAGE[1]])
def test_every_checkpoint_leads_to_the_same_numbers(newest, interrupted, trained_run, resume):
    output = interrupted(newest)
    assert resume(output) == 0
    assert_equal_runs(output, trained_run)


@pytest.mark.parametrize(
    ("newest", "scored"), [(LAST_OF_STAGE[0], ["finetune"]), (LAST_OF_STAGE[1], [])], ids=["pretrain", "finetune"]
)
def test_what_was_scored_before_the_interruption_is_not_scored_again(
    newest, scored, trained_run, tmp_path, resume, monkeypatch
):
    output, names, score_stage = tmp_path / "run", [], StageRun._score
    shutil.copytree(trained_run, output)
    (output / "metrics.json").unlink()
    for folder in (output / "checkpoints").iterdir():
        if folder.name != newest:
            shutil.rmtree(folder)
    monkeypatch.setattr(StageRun, "_score", lambda stage: names.append(stage.name) or score_stage(stage))
    assert resume(output) == 0
    assert names == scored
    assert_equal_runs(output, trained_run)


def test_a_run_killed_before_its_first_checkpoint_starts_again(interrupted, trained_run, resume):
    output = interrupted()
    assert resume(output) == 0
    assert_equal_runs(output, trained_run)


def test_half_a_checkpoint_is_ignored(interrupted, trained_run, resume):
    output = interrupted("step-01-00000008")
    half = output / "checkpoints" / ".step-01-00000012.partial"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert resume(output) == 0
    assert_equal_runs(output, trained_run)


def test_resuming_a_finished_run_changes_nothing(trained_run, tmp_path, resume):
    shutil.copytree(trained_run, tmp_path / "run")
    assert resume(tmp_path / "run") == 0
    assert_equal_runs(tmp_path / "run", trained_run)


# Two processes

TWO = ["stages.finetune.reinitialize=[generator]"]  # which every process draws for itself


@pytest.fixture(scope="module")
def run_of_two(tiny_dataset, environment, tmp_path_factory) -> Path:
    """The output folder of a run of two processes."""
    output = tmp_path_factory.mktemp("two") / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = subprocess.Popen([*launch, SCRIPT, *arguments(tiny_dataset, output, *TWO)], env=environment)
    try:
        assert process.wait(PATIENCE) == 0
    finally:
        process.terminate()  # the launcher ends its processes
    return output


def test_two_processes_train_one_model(run_of_two):
    newest = run_of_two / "checkpoints" / LAST_OF_STAGE[1]
    assert len(list(newest.glob("random_states_*.pkl"))) == 2  # one of each process
    weights = load_file(run_of_two / "model" / "model.safetensors")
    assert all(values.isfinite().all() for values in weights.values())


def test_scores_of_two_processes_are_those_of_the_model_they_wrote(run_of_two, tiny_dataset, one_thread):
    model, processor = load_model(str(run_of_two / "model"))
    scores = score(model, processor, open_dataset(str(tiny_dataset), "test"))
    written = json.loads((run_of_two / "metrics.json").read_text())
    assert {key: written[key] for key in scores} == scores


def test_processes_draw_different_random_numbers(run_of_two):
    newest = run_of_two / "checkpoints" / LAST_OF_STAGE[1]
    states = [load(path)["torch_manual_seed"] for path in newest.glob("random_states_*.pkl")]
    seeds = {torch.Generator().set_state(state).initial_seed() for state in states}
    assert len(seeds) == 2
