"""Times two things in turns, and writes the table that comes of it."""

import platform
import re
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import torch


@dataclass(frozen=True)
class Setting:
    """Where and how things are timed.

    Attributes:
        device: `"cpu"`, `"cuda"` or one of several, `"cuda:1"`.
        published: Whether the sizes are the published ones; otherwise the same networks see smaller images.
        bf16: Whether steps and predictions run under bf16 autocast, as mixed precision trains.
        repeats: How often every line is timed, after a first round that warms up.
        clock: `"wall"`, or `"cpu"` for the CPU time of this process, which the load of other programs does not enter.
            On a GPU, and for a line that has processes of its own, the clock is always the wall.
    """

    device: str = "cpu"
    published: bool = False
    bf16: bool = False
    repeats: int = 3
    clock: str = "wall"

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16)

    def seconds(self, run: Callable[[], object], clock: str | None = None) -> float:
        """The seconds that one run takes, with the work that the run leaves to the device."""
        now = time.process_time if (clock or self.clock) == "cpu" and not self.on_gpu else time.perf_counter
        self._wait_for_device()
        started = now()
        run()
        self._wait_for_device()
        return now() - started

    def _wait_for_device(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


@dataclass
class Line:
    """Something to time, by itself or beside a bound. Beside a bound the two take turns, and their ratio counts.

    Attributes:
        bound_name, bound: What is timed beside the line; None for a line that shows a value of its own.
        at_most: The limit of seconds / seconds of the bound, or of the line's own value.
        at_least: What seconds of the bound / seconds must reach, or the line's own value.
        value: The line's own value, made from the seconds of a run.
        unit: The unit of that value.
        clock: Takes the place of the setting's clock.
    """

    name: str
    run: Callable[[], object]
    bound_name: str = ""
    bound: Callable[[], object] | None = None
    at_most: float | None = None
    at_least: float | None = None
    value: Callable[[float], float] = float
    unit: str = "s"
    clock: str | None = None


def measure(line: Line, setting: Setting) -> dict:
    """Time a line. The first round, in which memory is claimed and kernels are chosen, does not count.

    Returns:
        The median (`value`), `lowest` and `highest` value of the line, the `seconds` and `bound_seconds` of one run
        (medians), and whether the line has `met` what is `required`; None where nothing is.
    """
    ours, bounds = [], []
    for _ in range(1 + setting.repeats):
        ours.append(setting.seconds(line.run, line.clock))
        if line.bound is not None:
            bounds.append(setting.seconds(line.bound, line.clock))
    ours, bounds = ours[1:], bounds[1:]
    values = [line.value(seconds) for seconds in ours]
    if bounds:
        pairs = zip(ours, bounds, strict=True)
        values = [mine / bound if line.at_least is None else bound / mine for mine, bound in pairs]
    value, required, met = statistics.median(values), "", None
    if line.at_most is not None:
        required, met = f"≤ {line.at_most}", value <= line.at_most
    if line.at_least is not None:
        required, met = f"≥ {line.at_least}", value >= line.at_least
    return {
        "name": line.name,
        "value": value,
        "lowest": min(values),
        "highest": max(values),
        "unit": "×" if bounds else line.unit,
        "seconds": statistics.median(ours),
        "bound": line.bound_name,
        "bound_seconds": statistics.median(bounds) if bounds else None,
        "required": required,
        "met": met,
    }


def describe(result: dict) -> str:
    """`1.06 × (1.05–1.09)`."""
    return "{value:.4g} {unit} ({lowest:.4g}–{highest:.4g})".format(**result)


def verdict(result: dict) -> str:
    return {None: "", True: "met", False: "**missed**"}[result["met"]]


def markdown(results: list[dict], facts: dict) -> str:
    """The facts in one line, and a table of the results."""
    rows = [", ".join(f"{name} {value}" for name, value in facts.items()) + "\n"]
    rows += ["| line | median (lowest–highest) | must be | | seconds | divided by | its seconds |", "|---" * 7 + "|"]
    for result in results:
        bound_seconds = f"{result['bound_seconds']:.4g}" if result["bound"] else ""
        cells = [result["name"], describe(result), result["required"], verdict(result), f"{result['seconds']:.4g}"]
        rows.append(f"| {' | '.join([*cells, result['bound'], bound_seconds])} |")
    return "\n".join(rows) + "\n"


def facts_of(setting: Setting) -> dict:
    """The machine, the versions and the setting of a measurement."""
    return {
        "device": torch.cuda.get_device_name(setting.device) if setting.on_gpu else _processor(),
        "threads": torch.get_num_threads(),
        "cores": psutil.cpu_count(logical=False),
        "load before": round(psutil.getloadavg()[0], 1),
        "sizes": "published" if setting.published else "small",
        "precision": "bf16" if setting.bf16 else "fp32",
        "clock": "wall" if setting.on_gpu else setting.clock,
        "repeats": setting.repeats,
        "Python": platform.python_version(),
    } | {name: version(name) for name in ("cagnet-hf", "torch", "transformers", "accelerate")}


def _processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()
