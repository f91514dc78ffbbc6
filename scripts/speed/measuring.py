"""Timing two things in turns, and the table that comes of it."""

import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch


@dataclass(frozen=True)
class Setting:
    """Where and how things are timed.

    Attributes:
        device: `"cpu"`, `"cuda"` or one of several, `"cuda:1"`.
        published: The published sizes; otherwise the same networks on smaller images.
        bf16: Steps and predictions run under bf16 autocast, as with `accelerate launch --mixed_precision bf16`.
        repeats: Runs of every line after one that warms up.
        clock: `"wall"`, or `"cpu"`: the CPU time of this process, which other programs' load does not enter. On a
            GPU and for lines with processes of their own it is always the wall.
    """

    device: str = "cpu"
    published: bool = False
    bf16: bool = False
    repeats: int = 5
    clock: str = "wall"

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16)

    def seconds(self, run: Callable[[], object], clock: str | None = None) -> float:
        """What one run takes, the device's work included."""
        now = time.process_time if (clock or self.clock) == "cpu" and not self.on_gpu else time.perf_counter
        self.wait()
        started = now()
        run()
        self.wait()
        return now() - started

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


@dataclass
class Line:
    """Something to time, by itself or against a bound: then the two take turns and their ratio counts.

    Attributes:
        bound: What is timed beside it; None for an absolute line.
        at_most: What seconds / seconds of `bound` must not exceed; nor may an absolute line's value.
        at_least: What seconds of `bound` / seconds must reach; so must an absolute line's value.
        value: What an absolute line shows, from the seconds of a run: seconds themselves by default.
        unit: Of that value.
        clock: Overrides the setting's.
        repeats: Fewer than the setting's, for what takes long or does not vary.
        warms_up: Whether a round that does not count comes first.
    """

    name: str
    run: Callable[[], object]
    bound_name: str = ""
    bound: Callable[[], object] | None = None
    at_most: float | None = None
    at_least: float | None = None
    value: Callable[[float], float] = field(default=lambda seconds: seconds)
    unit: str = "s"
    clock: str | None = None
    repeats: int | None = None
    warms_up: bool = True


@dataclass
class Result:
    """A line's medians over the repeats, and the lowest and highest value; seconds are of one run."""

    name: str
    value: float
    lowest: float
    highest: float
    unit: str
    seconds: float
    bound: str
    bound_seconds: float | None
    required: str
    met: bool | None


def measure(line: Line, setting: Setting) -> Result:
    """Time a line; its first round, in which memory is claimed and kernels are chosen, does not count."""
    values, seconds, bound_seconds = [], [], []
    repeats = min(line.repeats or setting.repeats, setting.repeats)
    for repeat in range(repeats + line.warms_up):
        ours = setting.seconds(line.run, line.clock)
        theirs = setting.seconds(line.bound, line.clock) if line.bound else None
        if repeat or not line.warms_up:
            seconds.append(ours)
            if theirs is None:
                values.append(line.value(ours))
            else:
                bound_seconds.append(theirs)
                values.append(theirs / ours if line.at_least is not None else ours / theirs)
    value, required, met = statistics.median(values), "", None
    if line.at_most is not None:
        required, met = f"≤ {line.at_most}", value <= line.at_most
    if line.at_least is not None:
        required, met = f"≥ {line.at_least}", value >= line.at_least
    return Result(
        name=line.name,
        value=value,
        lowest=min(values),
        highest=max(values),
        unit="×" if line.bound else line.unit,
        seconds=statistics.median(seconds),
        bound=line.bound_name,
        bound_seconds=statistics.median(bound_seconds) if bound_seconds else None,
        required=required,
        met=met,
    )


def describe(result: Result) -> str:
    """`real step: 1.06 × (1.05–1.09), must be ≤ 1.2: met`."""
    verdict = f", must be {result.required}: {'met' if result.met else 'MISSED'}" if result.required else ""
    numbers = [f"{value:.4g}" for value in (result.value, result.lowest, result.highest)]
    return f"{result.name}: {numbers[0]} {result.unit} ({numbers[1]}–{numbers[2]}){verdict}"


def markdown(results: list[Result], facts: dict) -> str:
    """The facts in a line, and a table of the results."""
    rows = [", ".join(f"{name} {value}" for name, value in facts.items()) + "\n"]
    rows += ["| line | median (lowest–highest) | must be | | seconds | divided by | its seconds |", "|---" * 7 + "|"]
    verdicts = {None: "", True: "met", False: "**missed**"}
    for r in results:
        bound_seconds = "" if r.bound_seconds is None else f"{r.bound_seconds:.4g}"
        rows.append(
            f"| {r.name} | {r.value:.4g} {r.unit} ({r.lowest:.4g}–{r.highest:.4g}) | {r.required} | {verdicts[r.met]} "
            f"| {r.seconds:.4g} | {r.bound} | {bound_seconds} |"
        )
    return "\n".join(rows) + "\n"


def facts_of(setting: Setting) -> dict:
    """The machine, the versions and the setting of a measurement."""
    import accelerate
    import transformers

    import cagnet_hf

    names = {"cagnet_hf": cagnet_hf, "PyTorch": torch, "transformers": transformers, "accelerate": accelerate}
    device = torch.cuda.get_device_name(setting.device) if setting.on_gpu else _processor()
    facts = {"device": device, "threads": torch.get_num_threads(), "cores": psutil.cpu_count(logical=False)}
    facts["load before"] = round(psutil.getloadavg()[0], 1)
    facts |= {"sizes": "published" if setting.published else "small", "precision": "bf16" if setting.bf16 else "fp32"}
    facts |= {"clock": "wall" if setting.on_gpu else setting.clock, "repeats": setting.repeats}
    versions = {name: module.__version__ for name, module in names.items()}
    if setting.on_gpu:
        versions |= {"CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    return facts | {"Python": platform.python_version()} | versions


def _processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
