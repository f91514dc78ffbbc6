"""Preparation that is killed: what was finished is not done again, what was half-done never looks whole."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from miniature_voc import MiniatureVoc

from cagnet_hf.data import examples as examples_module
from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data.pascal_voc import pascal_voc_examples
from cagnet_hf.data.prepared import open_prepared, write_prepared

VOC = load_benchmark("pascal_voc")
NUM_TRAIN, PATIENCE = 60, 120  # images, seconds
SHARD_BYTES = 4000  # a handful of images
PROGRAM = """
import sys, time
from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data import examples
from cagnet_hf.data.pascal_voc import pascal_voc_examples
from cagnet_hf.data.prepared import write_prepared

check = examples.check_example
examples.check_example = lambda *arguments: (time.sleep(0.05), check(*arguments))[1]  # slow enough to be killed
write_prepared(
    pascal_voc_examples(sys.argv[1]), sys.argv[2], load_benchmark("pascal_voc"),
    num_proc=1, max_shard_bytes=int(sys.argv[3]), skip_broken=True,
)
"""


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> MiniatureVoc:
    """Sixty images to train on, one of them broken."""
    names = [f"image{number:02d}" for number in range(NUM_TRAIN)]
    voc = MiniatureVoc(tmp_path_factory.mktemp("source"), train=[*names, "broken"])
    for number, name in enumerate(names):
        voc.write_mask(name, np.full((10, 20), number % 21, np.uint8))
    voc.write_mask("broken", np.full((10, 20), 1, np.uint8))
    voc.write_mask("d", np.full((10, 20), 1, np.uint8))
    voc.write_list("train_aug.txt", [*names[:2], "broken", *names[2:]])
    voc.truncate("broken")
    return voc


def prepare(source: MiniatureVoc, output: Path, **options):
    options = {"max_shard_bytes": SHARD_BYTES, "skip_broken": True} | options
    return write_prepared(pascal_voc_examples(source.folder), output, VOC, **options)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def killed(source, tmp_path_factory) -> Path:
    """The folder in which a preparation to `out` was killed once four of its files were whole."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", PROGRAM, str(source.folder), str(folder / "out"), str(SHARD_BYTES)]
    process = subprocess.Popen(command, env={**os.environ, "TQDM_DISABLE": "1"}, stderr=subprocess.PIPE)
    give_up = time.monotonic() + PATIENCE
    while len(list(folder.glob(".out.partial/progress/*.json"))) < 4:
        assert process.poll() is None and time.monotonic() < give_up, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return folder


@pytest.fixture
def interrupted(killed, tmp_path) -> Path:
    """A copy of that folder."""
    subprocess.run(["cp", "-a", f"{killed}/.", str(tmp_path / "copy")], check=True)
    return tmp_path / "copy"


@pytest.fixture
def checked(monkeypatch) -> list[str]:
    """The images that are looked at from now on."""
    names, check = [], examples_module.check_example

    def counted(example, label_map):
        names.append(example.image_id)
        return check(example, label_map)

    monkeypatch.setattr(examples_module, "check_example", counted)
    return names


def test_nothing_whole_is_there_before_the_end(killed):
    assert not (killed / "out").exists()
    assert not list(killed.rglob("*.parquet"))


def test_the_same_command_ends_in_the_same_dataset(source, interrupted, tmp_path):
    reports = prepare(source, interrupted / "out")
    expected = prepare(source, tmp_path / "whole")
    assert digests(interrupted / "out") == digests(tmp_path / "whole")
    assert [path.name for path in interrupted.iterdir()] == ["out"]
    for split, report in reports.items():
        assert (report.num_images, report.skipped) == (expected[split].num_images, expected[split].skipped)
        assert (report.num_pixels == expected[split].num_pixels).all()
        assert (report.num_images_with == expected[split].num_images_with).all()
    assert "broken.jpg: truncated or damaged" in reports["train"].skipped[0]
    assert len(open_prepared(interrupted / "out", split="train")) == NUM_TRAIN


def test_finished_files_are_not_made_again(source, interrupted, checked):
    finished = sorted((interrupted / ".out.partial/dataset/data").glob("train-*"))
    times = [path.stat().st_mtime_ns for path in finished]
    prepare(source, interrupted / "out")
    assert 0 < len(checked) < NUM_TRAIN and "image00" not in checked
    named = sorted((interrupted / "out" / "data").glob("train-*"))[: len(finished)]
    assert [path.stat().st_mtime_ns for path in named] == times


def test_a_run_killed_while_it_named_its_files_goes_on(source, interrupted, tmp_path):
    """Of the names that tell the number of files, one is there already."""
    prepare(source, tmp_path / "whole")
    number = len(list((tmp_path / "whole/data").glob("train-*")))
    first = interrupted / ".out.partial/dataset/data/train-00000"
    first.rename(first.with_name(f"train-00000-of-{number:05d}.parquet"))
    prepare(source, interrupted / "out")
    assert digests(interrupted / "out") == digests(tmp_path / "whole")


@pytest.mark.parametrize("change", ["another option", "a changed file"])
def test_of_another_plan_nothing_is_taken_over(source, interrupted, checked, change):
    options = {}
    if change == "another option":
        options["max_shard_bytes"] = 2 * SHARD_BYTES
    else:
        os.utime(source.mask("image00"))
    prepare(source, interrupted / "out", **options)
    assert len(checked) == NUM_TRAIN + 2


def test_what_is_refused_after_a_kill_leaves_nothing_behind(source, interrupted):
    with pytest.raises(ValueError, match="1 bad pairs"):
        prepare(source, interrupted / "out", skip_broken=False)
    assert list(interrupted.iterdir()) == []
