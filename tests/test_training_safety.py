"""What a run does when things go wrong: it says what, keeps what is whole, and leaves a record of what it was."""

import importlib.metadata
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch
from conftest import REPOSITORY
from datasets import Dataset
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from trained import PRETRAIN, arguments, assert_equal_runs

from cagnet_hf.data.rows import Rows
from cagnet_hf.data.scenes import scenes_dataset
from cagnet_hf.training import batches, loop
from cagnet_hf.training.checkpoints import RunState, checkpoints, record_scores
from cagnet_hf.training.measurements import Measurements, NotFinite, total_norm
from cagnet_hf.training.record import dataset_fingerprint, git_commit

SHORT = ["stages.pretrain.iterations=4", "stages.finetune.iterations=6", "checkpoint_every=2", "log_every=2"]


@pytest.fixture
def train(load_script, tiny_dataset, one_thread, capsys):
    """`train(output, *keys)`: (exit code, what was printed, the error lines) of a run."""

    def run(output, *keys, options=(), **more):
        code = load_script("train").main([*options, *arguments(tiny_dataset, output, *keys, **more)])
        printed = capsys.readouterr()
        lines = printed.err.replace("\r", "\n").splitlines()
        return code, printed.out, [line for line in lines if "error" in line.lower() or "Traceback" in line]

    return run


@pytest.fixture
def interrupted(trained_run, tmp_path):
    """A copy of a whole run as if it had been killed in its second stage."""
    output = tmp_path / "run"
    shutil.copytree(trained_run, output)
    (output / "metrics.json").unlink()
    for folder in checkpoints(output / "checkpoints"):
        if folder.name > "step-01-00000016":
            shutil.rmtree(folder)
    return output


# Values that are not finite


def test_a_value_that_is_not_finite_is_found_with_its_name_and_iteration():
    measured = Measurements()
    for iteration, (kl, content) in enumerate([(1.0, 2.0), (1.0, float("inf")), (float("nan"), 2.0)]):
        measured.add(iteration, {"loss/kl": torch.tensor(kl), "loss/content": torch.tensor(content)})
    with pytest.raises(NotFinite, match="loss content not finite at iteration 2") as found:
        measured.take()
    assert found.value.iteration == 1


def test_means_are_taken_by_name_and_forgotten():
    measured = Measurements()
    measured.add(0, {"loss/kl": torch.tensor(1.0)})
    measured.add(1, {"loss/kl": torch.tensor(2.0), "gradient_norm/network": torch.tensor(5.0)})
    assert measured.take() == {"loss/kl": 1.5, "gradient_norm/network": 5.0}
    assert measured.take() == {}


class NoWaiting(TorchDispatchMode):
    """Refuses to hand a number of a tensor to Python, for which a GPU would be waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_measuring_waits_for_no_number():
    measured = Measurements()
    with NoWaiting():
        for iteration in range(3):
            measured.add(iteration, {"loss/kl": torch.ones(()), "gradient_norm/network": total_norm([torch.ones(4)])})
    assert measured.take() == {"loss/kl": 1.0, "gradient_norm/network": 2.0}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_norm_of_all_values_is_not_finite_where_one_is_not(value):
    assert total_norm([torch.ones(3), torch.ones(2, 2)]) == 7**0.5
    assert not total_norm([torch.ones(3), torch.tensor([1.0, value])]).isfinite()


def test_a_loss_that_is_not_finite_names_term_iteration_images_and_checkpoint(train, tmp_path, monkeypatch):
    seen = []
    examples = batches.TrainingExamples

    class Spied(examples):
        def __getitem__(self, key):
            seen.append(self.images.dataset[key[1]].id)
            return super().__getitem__(key)

    monkeypatch.setattr(batches, "TrainingExamples", Spied)
    code, _, errors = train(tmp_path / "run", "stages.pretrain.network.lr=1e30")
    assert code == 2
    (line,) = errors
    found = re.fullmatch(
        r"error: loss (.+) is not finite at iteration (\d+) of pretrain \(images (.+)\); lower the learning rate, "
        r"or look at the images; last good checkpoint: (.+)",
        line,
    )
    assert "classification" in found[1].split(", ")
    iteration = int(found[2])
    assert found[3].split(", ") == seen[2 * (iteration - 1) : 2 * iteration]  # batches of two
    assert found[4] == "none was saved yet"


def test_a_weight_that_is_not_finite_is_never_saved(train, interrupted, monkeypatch):
    """As after a gradient that overflowed where every loss was finite."""
    average = loop.average_statistics

    def spoil(accelerator, model):
        average(accelerator, model)
        with torch.no_grad():
            next(model.parameters())[0, 0, 0, 0] = float("nan")

    before = checkpoints(interrupted / "checkpoints")
    monkeypatch.setattr(loop, "average_statistics", spoil)
    code, _, errors = train(interrupted, resume=True)
    assert (code, len(errors)) == (2, 1)
    assert "a weight is not finite or far too large at iteration 20 of finetune" in errors[0]
    assert errors[0].endswith(f"last good checkpoint: {before[-1]}")
    assert checkpoints(interrupted / "checkpoints") == before


# What is logged


def test_gradient_norms_and_learning_rates_are_in_the_history(trained_run):
    newest = checkpoints(trained_run / "checkpoints")[-1]
    history = json.loads((newest / "trainer_state.json").read_text())["history"]
    pretrain = [entry for entry in history if entry["stage"] == "pretrain"]
    rates = [entry["learning_rate/network"] for entry in pretrain]
    assert rates == sorted(rates, reverse=True)  # poly
    assert rates[0] == pytest.approx(0.002 * (1 - 2 / PRETRAIN) ** 0.9)
    logged = [entry for entry in pretrain if entry["iteration"] % 3 == 0]
    assert all(entry[f"gradient_norm/{part}"] > 0 for entry in logged for part in ("network", "classifier"))
    finetune = [entry for entry in history if entry["stage"] == "finetune"]
    assert not any("learning_rate/network" in entry for entry in finetune)  # frozen


# Deterministic runs, and the record


def test_two_deterministic_runs_are_equal(train, tmp_path):
    try:
        for name in ("one", "two"):
            assert train(tmp_path / name, *SHORT, options=["--deterministic"])[0] == 0
            assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_equal_runs(tmp_path / "one", tmp_path / "two")
    assert json.loads((tmp_path / "one" / "run.json").read_text())["recipe"]["deterministic"] is True


def test_a_run_records_what_it_was_made_from(trained_run):
    record = json.loads((trained_run / "run.json").read_text())
    assert record["recipe"]["stages"]["pretrain"]["iterations"] == PRETRAIN
    assert (record["seed"], record["num_processes"]) == (0, 1)
    assert record["datasets"]["train"]["num_images"] == 12
    (made_with,) = record["made_with"]
    assert made_with["versions"]["torch"] == importlib.metadata.version("torch")
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", made_with["git_commit"] or "0" * 40)  # None outside of a clone


def test_the_commit_is_that_of_the_repository():
    def head() -> str:
        return subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True).stdout

    before, commit, after = head().strip(), git_commit(), head().strip()
    if not before:
        pytest.skip("not in a clone of the repository")
    assert commit.removesuffix("-dirty") in (before, after)  # somebody may commit meanwhile


def test_a_fingerprint_changes_with_masks_order_and_images():
    rows = scenes_dataset(0, "test").select(range(3))
    fingerprint = dataset_fingerprint(Rows(rows))
    assert fingerprint["num_images"] == 3
    assert dataset_fingerprint(Rows(scenes_dataset(0, "test").select(range(3)))) == fingerprint
    others = [rows.select([1, 0, 2]), scenes_dataset(1, "test").select(range(3)), rows.select(range(2))]
    swapped = rows.to_dict()
    others.append(Dataset.from_dict(swapped | {"mask": swapped["mask"][::-1]}, features=rows.features))
    assert all(dataset_fingerprint(Rows(other)) != fingerprint for other in others)


def test_a_run_does_not_go_on_with_other_data(train, interrupted, tiny_dataset):
    record = json.loads((interrupted / "run.json").read_text())
    record["datasets"]["test"]["digest"] = "0" * 32
    (interrupted / "run.json").write_text(json.dumps(record))
    code, _, errors = train(interrupted, resume=True)
    assert (code, len(errors)) == (2, 1)
    assert "the test split changed from 6 images with digest 000" in errors[0]


def test_a_run_does_not_go_on_with_another_number_of_processes(train, interrupted):
    record = json.loads((interrupted / "run.json").read_text())
    (interrupted / "run.json").write_text(json.dumps(record | {"num_processes": 2}))
    code, _, errors = train(interrupted, resume=True)
    assert (code, len(errors)) == (2, 1)
    assert "cannot resume with 1 process(es) a run of 2" in errors[0]


def test_a_run_does_not_go_on_with_another_mixed_precision(train, interrupted):
    record = json.loads((interrupted / "run.json").read_text())
    record["made_with"][-1]["mixed_precision"] = "bf16"
    (interrupted / "run.json").write_text(json.dumps(record))
    code, _, errors = train(interrupted, resume=True)
    assert (code, len(errors)) == (2, 1)
    assert "cannot resume with mixed precision no a run of bf16" in errors[0]
    assert "accelerate launch --mixed_precision bf16" in errors[0]


def test_an_environment_that_changed_is_recorded_beside_the_first(train, interrupted, trained_run):
    record = json.loads((interrupted / "run.json").read_text())
    record["made_with"][0]["versions"]["torch"] = "1.0"
    (interrupted / "run.json").write_text(json.dumps(record))
    assert train(interrupted, resume=True)[0] == 0
    versions = [made["versions"]["torch"] for made in json.loads((interrupted / "run.json").read_text())["made_with"]]
    assert versions == ["1.0", importlib.metadata.version("torch")]
    assert_equal_runs(interrupted, trained_run)


# Checkpoints


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer_1.bin", "random_states_0.pkl", "trainer_state.json"])
def test_a_damaged_checkpoint_is_refused_with_the_way_out(name, train, interrupted):
    newest = checkpoints(interrupted / "checkpoints")[-1]
    data = bytearray((newest / name).read_bytes())
    data[len(data) // 2] ^= 255
    (newest / name).write_bytes(data)
    code, _, errors = train(interrupted, resume=True)
    assert (code, len(errors)) == (2, 1)
    assert f"{newest}: damaged (" in errors[0]
    assert errors[0].endswith("delete it to go on from the one before")


def test_a_changed_number_in_a_checkpoint_s_state_is_damage(train, interrupted):
    newest = checkpoints(interrupted / "checkpoints")[-1]
    state = json.loads((newest / "trainer_state.json").read_text())
    (newest / "trainer_state.json").write_text(json.dumps(state | {"seconds": state["seconds"] + 1}))
    code, _, errors = train(interrupted, resume=True)
    assert (code, len(errors)) == (2, 1)
    assert "trainer_state.json is not what was written" in errors[0]


def test_a_score_that_cannot_be_noted_is_a_warning(tmp_path, monkeypatch):
    state = RunState(stages=[{"name": "pretrain"}])
    (tmp_path / "step-00-00000000").mkdir()
    (tmp_path / "step-00-00000000" / "trainer_state.json").write_text('{"sha256": {}}')

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("cagnet_hf.training.checkpoints.write_text_whole", full)
    with pytest.warns(UserWarning, match="could not be noted .No space left on device.; resumed, it is found again"):
        record_scores(tmp_path, state)


def test_a_missing_file_of_a_checkpoint_is_refused(train, interrupted):
    newest = checkpoints(interrupted / "checkpoints")[-1]
    (newest / "random_states_0.pkl").unlink()
    code, _, errors = train(interrupted, resume=True)
    assert (code, len(errors)) == (2, 1)
    assert "random_states_0.pkl" in errors[0]


def assert_stopped_for_want_of_room(result, output, before) -> None:
    code, _, errors = result
    assert (code, len(errors)) == (2, 1), errors
    assert "the checkpoint could not be written" in errors[0]
    assert "make room and go on with --resume" in errors[0]
    assert errors[0].endswith(f"last whole checkpoint: {before[-1]}")
    left = sorted((output / "checkpoints").iterdir())
    assert left == before  # nor is there half a one


@pytest.fixture
def small_disk(tmp_path):
    """A disk of few megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_leaves_the_checkpoint_before(train, interrupted, small_disk, trained_run):
    for folder in checkpoints(interrupted / "checkpoints")[:-1]:
        shutil.rmtree(folder)
    output = small_disk / "run"
    shutil.copytree(interrupted, output)
    before = checkpoints(output / "checkpoints")
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:  # leaves less than a checkpoint needs
        size = sum(path.stat().st_size for path in before[0].iterdir())
        file.write(bytes(shutil.disk_usage(small_disk).free - size // 2))
    assert_stopped_for_want_of_room(train(output, resume=True), output, before)
    ballast.unlink()
    assert train(output, "checkpoints_kept=100", resume=True)[0] == 0
    assert_equal_runs(output, trained_run)


def test_a_limit_on_the_size_of_files_leaves_the_checkpoint_before(train, interrupted):
    before = checkpoints(interrupted / "checkpoints")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    weights = (before[-1] / "model.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (weights // 2, limits[1]))
    try:
        result = train(interrupted, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_stopped_for_want_of_room(result, interrupted, before)


# SIGTERM and Ctrl-C

TRAIN = str(REPOSITORY / "scripts" / "train.py")
# Runs a script in which every process of the group, data workers included, hears a signal when the progress bar has
# counted an iteration of twelve, but not the last: as a terminal or a scheduler sends it. A signal from outside would
# come too late on a busy machine.
SIGNALLED_WHILE_TRAINING = """
import os, re, runpy, signal, sys
number, *sys.argv = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, even where the tests ignore Ctrl-C
write, sent = sys.stderr.write, []
def watch(text):
    if not sent and re.search(r" ([1-9]|10)/12 ", text):
        sent.append(text)
        os.killpg(0, int(number))
    return write(text)
sys.stderr.write = watch
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "ctrl_c"])
def test_a_signal_saves_and_tells_how_to_go_on(number, tiny_dataset, trained_run, tmp_path, train):
    output = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment["HF_DATASETS_CACHE"] = str(tiny_dataset.parent / "cache")
    slow = arguments(tiny_dataset, output, "checkpoint_every=1000", "num_workers=2")
    command = [sys.executable, "-c", SIGNALLED_WHILE_TRAINING, str(int(number)), TRAIN, *slow]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, start_new_session=True)
    assert process.returncode == 0, process.stderr
    (line,) = [line for line in process.stdout.splitlines() if line.startswith("Stopped")]
    (saved,) = checkpoints(output / "checkpoints")
    assert saved.name < f"step-00-{PRETRAIN:08d}"
    words = shlex.split(line.partition("to go on: ")[2])
    assert words[0] == "python"
    assert words[2:] == ["--resume", *slow]
    assert train(output, "checkpoint_every=1000", "num_workers=2", resume=True)[0] == 0
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (output, trained_run)]
    assert weights[0] == weights[1]


def test_sigterm_while_scoring_ends_at_once_and_loses_nothing(train, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.StageRun, "_score", lambda stage: os.kill(os.getpid(), signal.SIGTERM))
    code, printed, _ = train(tmp_path / "run", "evaluate_every=5", "checkpoint_every=1000")
    assert code == 0
    assert "Stopped; to go on: cagnet-hf train --resume " in printed
    assert [folder.name for folder in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00-00000005"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sigterm_in_the_last_iteration_of_a_stage_ends_the_run(train, trained_run, tmp_path, monkeypatch):
    set_rates = loop.set_learning_rates

    def stop_in_the_last(optimizers, stage, iteration):
        if iteration == PRETRAIN - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        set_rates(optimizers, stage, iteration)

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "set_learning_rates", stop_in_the_last)
        patch.setattr(loop.StageRun, "_score", lambda *_: pytest.fail("the run went on to score"))
        code, printed, _ = train(output)
    assert (code, "Stopped; to go on: " in printed) == (0, True)
    assert checkpoints(output / "checkpoints")[-1].name == f"step-00-{PRETRAIN:08d}"
    assert train(output, resume=True)[0] == 0
    assert_equal_runs(output, trained_run)


def test_a_run_in_a_thread_leaves_signals_alone(train, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(tmp_path / "run", *SHORT)))
    thread.start()
    thread.join()
    assert results[0][0] == 0


def test_weights_are_whole_in_every_checkpoint(trained_run):
    for folder in checkpoints(trained_run / "checkpoints"):
        assert all(values.isfinite().all() for values in load_file(folder / "model.safetensors").values())
