"""What the commands share."""

import psutil
import pytest
import torch

from cagnet_hf.cli import use_every_core


@pytest.fixture
def threads_after(monkeypatch):
    """`threads_after(**environment)`: how many threads PyTorch is asked to use; None when it is left alone."""
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)

    def run(**environment):
        for name in ("ACCELERATE_MIXED_PRECISION", "OMP_NUM_THREADS", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        use_every_core()
        return asked[0] if asked else None

    return run


LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}


def test_one_launched_process_uses_every_core(threads_after):
    assert threads_after(**LAUNCHED) == psutil.cpu_count(logical=False)


@pytest.mark.parametrize(
    "environment",
    [{}, {"OMP_NUM_THREADS": "1"}, LAUNCHED | {"OMP_NUM_THREADS": "4"}, LAUNCHED | {"WORLD_SIZE": "2"}],
    ids=["python", "python with a limit", "launched with a limit", "one of two"],
)
def test_what_the_user_or_the_launcher_decided_stands(threads_after, environment):
    assert threads_after(**environment) is None
