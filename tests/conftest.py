"""What several test files share."""

import gc
import importlib.util
import os
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

# Two workers share two cores: threads of their own would only wait for each other, here and in what a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Runs are compared bit by bit, which a GPU does not promise; CUDA_VISIBLE_DEVICES=0 runs the tests on one.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from trained import arguments, write_dataset

from cagnet_hf.cli import build_parser, main
from cagnet_hf.commands import COMMANDS

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real data beside the repository: a subset of Pascal VOC and the paper's word vectors."""
    path = REPOSITORY.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"needs the real data in {path}")
    return path


@pytest.fixture(scope="session", autouse=True)
def no_sleep_between_epochs():
    """`datasets` sleeps for five seconds whenever a stream of Parquet files ends; these have a dozen rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)  # older ones do not sleep
        yield


@pytest.fixture(scope="session", autouse=True)
def few_garbage():
    """What the imports have made stays: every stage of a run collects garbage, which takes half a second else."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def save_chart():
    """Charts take as long as a short run: where nobody looks at a chart, one pixel is saved. Gives what saves all."""
    save = Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, path, **options: Image.new("L", (1, 1)).save(path, "PNG"))
        yield save


@pytest.fixture
def charts(save_chart, monkeypatch):
    """In this test, charts are drawn."""
    monkeypatch.setattr(Figure, "savefig", save_chart)


@dataclass(frozen=True)
class Command:
    """A command of `cagnet-hf`, run in this process."""

    name: str

    def main(self, argv: list[str]) -> int:
        return main([self.name, *argv])

    def build_parser(self) -> ArgumentParser:
        return build_parser(self.name)


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], Command | ModuleType]:
    """`load_script("train").main(argv)` runs a command, or a script that is none, in this process."""

    def load(name: str) -> Command | ModuleType:
        if name in COMMANDS:
            return Command(name)
        spec = importlib.util.spec_from_file_location(f"scripts_{name}", REPOSITORY / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def one_thread():
    """Sums are taken in one order, so that runs can be compared bit by bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    """A dozen training and six test images of the synthetic benchmark, as a prepared folder."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        yield write_dataset(folder / "scenes")


@pytest.fixture(scope="session")
def trained_run(tiny_dataset, tmp_path_factory, load_script, one_thread, save_chart) -> Path:
    """The output folder of a short, uninterrupted training run; not to be changed."""
    output = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_chart)
        assert load_script("train").main(arguments(tiny_dataset, output)) == 0
    return output
