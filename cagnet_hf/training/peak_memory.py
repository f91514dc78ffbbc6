"""The most memory that was in use at a time."""

import sys
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak_memory(device: torch.device) -> None:
    """Start anew: from here on `peak_memory` tells of what follows, where the system allows it (GPUs, Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            _RESET.write_text("5")
        except OSError:  # the peak stays that of the whole process
            pass


def peak_memory(device: torch.device) -> float:
    """MiB: what tensors took on a GPU, what the process took where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    except (OSError, StopIteration):
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
