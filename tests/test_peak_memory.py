"""What training says of memory. The system's numbers are given, so that no other program's work can move them."""

import resource
import sys
from types import SimpleNamespace

import pytest
import torch

from cagnet_hf.training import peak_memory as module
from cagnet_hf.training.peak_memory import forget_peak_memory, peak_memory

CPU = torch.device("cpu")


@pytest.fixture
def system(monkeypatch, tmp_path):
    """The two files in which Linux tells of the memory of a process, and in which it is told to forget the peak."""
    files = SimpleNamespace(status=tmp_path / "status", reset=tmp_path / "clear_refs")
    monkeypatch.setattr(module, "_STATUS", files.status)
    monkeypatch.setattr(module, "_RESET", files.reset)
    return files


def test_the_peak_is_what_linux_tells_in_kibibytes(system):
    system.status.write_text("Name:\tpython\nVmPeak:\t 9999999 kB\nVmHWM:\t  307200 kB\nVmRSS:\t  102400 kB\n")
    assert peak_memory(CPU) == 300


def test_linux_is_told_to_forget_the_peak(system):
    forget_peak_memory(CPU)
    assert system.reset.read_text() == "5"


@pytest.mark.parametrize(("platform", "unit"), [("linux", 2**10), ("darwin", 1)])
def test_without_these_files_the_peak_is_that_of_the_whole_process(system, monkeypatch, platform, unit):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=300 * 2**20 // unit))
    system.reset.mkdir()  # cannot be written
    forget_peak_memory(CPU)
    assert peak_memory(CPU) == 300


@pytest.mark.skipif(sys.platform != "linux", reason="no other system has these files")
def test_the_files_of_this_system_are_read_and_written(monkeypatch):
    monkeypatch.setattr(resource, "getrusage", lambda who: pytest.fail("the peak was not found in the file"))
    forget_peak_memory(CPU)
    assert peak_memory(CPU) > 0


def test_a_gpu_tells_and_forgets_for_itself(monkeypatch):
    device, calls = torch.device("cuda", 1), []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", calls.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda of: calls.append(of) or 3 * 2**20)
    forget_peak_memory(device)
    assert peak_memory(device) == 3
    assert calls == [device, device]
