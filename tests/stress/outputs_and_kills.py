"""Kills a training run with SIGKILL while it writes what a finished run leaves: model folder, figures, card, metrics.

    python tests/stress/outputs_and_kills.py --kills 12

After every kill the folder holds no half-written file under a name of its own, the checkpoint is whole, and the same
command with `--resume` finishes the run in the same bytes. A second run that starts in the folder is refused.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from trained import arguments, assert_equal_runs, write_dataset  # noqa: E402

SCRIPT = TESTS.parent / "scripts" / "train.py"
MOMENTS = {
    "the model folder": lambda run: (run / ".model.partial").exists() or (run / "model").exists(),
    "the figures": lambda run: (run / "figures").exists(),
    "the card": lambda run: (run / "figures" / "predictions.png").exists(),
}


def start(dataset: Path, run: Path, *, resume: bool = True) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), *arguments(dataset, run, resume=resume)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        dataset = write_dataset(folder / "scenes")
        expected = folder / "expected"
        assert start(dataset, expected).wait() == 0
        for number in range(args.kills):
            run = folder / "run"
            shutil.copytree(expected, run)
            for name in ("model", "figures"):
                shutil.rmtree(run / name)
            (run / "metrics.json").unlink()
            what, has_come = list(MOMENTS.items())[number % len(MOMENTS)]
            first = start(dataset, run)
            while first.poll() is None and not has_come(run):
                time.sleep(0.001)
            if number == 0 and first.poll() is None:
                first.send_signal(19)  # SIGSTOP: the second run meets a first one that is alive
                second = start(dataset, run)
                assert "another process is training" in second.communicate()[0]
                assert second.returncode == 2
            time.sleep(rng.uniform(0, 0.2))
            first.kill()
            first.wait()
            assert not (run / "metrics.json").exists() or what == "the card"
            again = start(dataset, run)
            printed = again.communicate()[0]
            assert again.returncode == 0, printed
            assert_equal_runs(run, expected)
            assert not list(run.glob(".*.partial")) and not list(run.glob(".*.old"))
            shutil.rmtree(run)
            print(f"kill {number + 1}, while it wrote {what}: finished in the same bytes", flush=True)


if __name__ == "__main__":
    main()
