"""Lines that need processes of their own: start-up, and training in several processes. They are timed by the wall."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .measuring import Line

SCRIPTS = Path(__file__).resolve().parents[1]
NEEDED = "PreTrainedModel, AutoModel, AutoModelForSemanticSegmentation, AutoImageProcessor"


def process_lines() -> Iterator[Line]:
    yield Line(
        "import cagnet_hf",
        lambda: _python("-c", "import cagnet_hf"),
        "import of what it needs of transformers",
        lambda: _python("-c", f"from transformers import {NEEDED}"),
        at_most=1.1,
        clock="wall",
    )
    slowest: list[float] = []

    def ask_every_script():
        slowest[:] = [0.0]
        for script in sorted(SCRIPTS.glob("*.py")):
            started = time.perf_counter()
            _python(str(script), "--help")
            slowest[0] = max(slowest[0], time.perf_counter() - started)

    yield Line("--help of the slowest script", ask_every_script, value=lambda _: slowest[0], at_most=1.5, clock="wall")
    seconds: dict[int, float] = {}

    def train():
        for processes in (1, 2):
            seconds[processes] = training_seconds(processes)

    yield Line(
        "images a second of two processes of one thread, beside one",
        train,
        value=lambda _: 2 * seconds[1] / seconds[2],
        unit="×",
        at_least=1.6,
        clock="wall",
        repeats=2,
        warms_up=False,
    )


def training_seconds(processes: int, iterations: int = 40) -> float:
    """What `iterations` of pre-training on `scenes` take with so many CPU processes of one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        keys = ["until=pretrain", f"stages.pretrain.iterations={iterations}", "num_workers=0", "trackers=[]"]
        options = [str(SCRIPTS / "train.py"), "--recipe", "scenes", "--output_dir", f"{folder}/run", *keys]
        if processes > 1:
            options = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *options]
        _python(*options, ACCELERATE_USE_CPU="true")
        return json.loads(Path(folder, "run", "metrics.json").read_text())["stages"][0]["seconds"]


def _python(*arguments: str, **environment: str) -> None:
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    path = os.pathsep.join([str(SCRIPTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **one_thread, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {result.stderr.strip()[-500:]}")
