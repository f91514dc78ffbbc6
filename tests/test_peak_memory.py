"""What training and the benchmark say of memory."""

import sys

import pytest
import torch

from cagnet_hf.training.peak_memory import forget_peak_memory, peak_memory
from scripts.speed.measuring import Setting, measure
from scripts.speed.network import memory_line

MIB = 2**20
CPU = torch.device("cpu")


def hold(mebibytes: int) -> torch.Tensor:
    return torch.ones(mebibytes * MIB, dtype=torch.uint8)


def test_the_peak_stays_when_its_memory_is_given_back():
    forget_peak_memory(CPU)
    before = peak_memory(CPU)
    hold(300)
    assert peak_memory(CPU) > before + 200


@pytest.mark.skipif(sys.platform != "linux", reason="no other system forgets the peak of a process")
def test_a_forgotten_peak_is_gone():
    hold(300)
    before = peak_memory(CPU)
    forget_peak_memory(CPU)
    assert peak_memory(CPU) < before - 200


def test_the_benchmark_tells_the_memory_of_a_step():
    forget_peak_memory(CPU)
    without = peak_memory(CPU)
    result = measure(memory_line(Setting(), lambda: hold(300).sum()), Setting())
    assert result.value > without + 200
