"""Preparation that is killed: what was half-done never looks whole, and the same command begins anew."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from miniature_voc import MiniatureVoc

from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data.builders.pascal_voc import pascal_voc_examples
from cagnet_hf.data.prepared import write_prepared
from cagnet_hf.data.sources import open_prepared

VOC = load_benchmark("pascal_voc")
NUM_TRAIN = 60  # images
FILE_BYTES = 4000  # a handful of images
# Prepares a dataset and is killed when the fourth of its files has been begun. Nothing has to watch the process from
# outside, which would come too late on a busy machine.
PROGRAM = """
import os, signal, sys
from pathlib import Path
from cagnet_hf.data.benchmarks import load_benchmark
from cagnet_hf.data import examples
from cagnet_hf.data.builders.pascal_voc import pascal_voc_examples
from cagnet_hf.data.prepared import write_prepared

source, output, max_file_bytes = sys.argv[1:]
check = examples.check_example
def check_or_die(*arguments):
    if len(list(Path(output).parent.glob(".out.partial/data/train-*"))) >= 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return check(*arguments)
examples.check_example = check_or_die
write_prepared(
    pascal_voc_examples(source), output, load_benchmark("pascal_voc"),
    num_proc=1, max_file_bytes=int(max_file_bytes), skip_broken=True,
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
    options = {"max_file_bytes": FILE_BYTES, "skip_broken": True} | options
    return write_prepared(pascal_voc_examples(source.folder), output, VOC, **options)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_killed_preparation_leaves_nothing_that_looks_whole_and_the_same_command_begins_anew(source, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(source.folder), str(tmp_path / "out"), str(FILE_BYTES)]
    finished = subprocess.run(command, env={**os.environ, "TQDM_DISABLE": "1"}, capture_output=True, text=True)
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    assert len(list(tmp_path.glob(".out.partial/data/train-*"))) == 4
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.parquet"))

    reports = prepare(source, tmp_path / "out")
    prepare(source, tmp_path / "whole")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    assert "broken.jpg: truncated or damaged" in reports["train"].skipped[0]
    assert len(open_prepared(tmp_path / "out", split="train")) == NUM_TRAIN


def test_what_is_refused_after_a_kill_leaves_nothing_behind(source, tmp_path):
    (tmp_path / "here" / ".out.partial" / "data").mkdir(parents=True)
    with pytest.raises(ValueError, match="1 bad pairs"):
        prepare(source, tmp_path / "here" / "out", skip_broken=False)
    assert list((tmp_path / "here").iterdir()) == []
