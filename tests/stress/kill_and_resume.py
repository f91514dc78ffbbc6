"""Kills training runs with SIGKILL at random moments and resumes them: every run must end in the same bytes.

    python tests/stress/kill_and_resume.py --kills 40 --processes 1 2

A run is killed again and again on its way - anywhere, while a checkpoint is written, while it is scored, between its
stages and while its report is written - and resumed by the same command until it is through. Its weights, scores and
history must then be those of a run that nobody killed. Of two processes, either one is killed or all of them.

The commands are forked from this process, which has imported the packages: a start takes no time, a kill is a kill.
"""

import argparse
import multiprocessing
import os
import random
import runpy
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import datasets
import psutil
import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from trained import assert_equal_runs, write_dataset  # noqa: E402

import cagnet_hf.apps.report  # noqa: E402, F401 - imported for the commands to come

SCRIPT = TESTS.parent / "scripts" / "train.py"
FORK = multiprocessing.get_context("fork")
SCHEDULE = [
    "stages.pretrain.iterations=40",
    "stages.pretrain.batch_size=4",
    "stages.finetune.iterations=60",
    "stages.finetune.batch_size=4",
    "stages.finetune.real_block=10",
    "stages.finetune.synthetic_block=10",
    "checkpoint_every=10",
    "evaluate_every=20",
    "log_every=5",
]
KILLS_PER_RUN = 6  # then a run may finish, so that it can be compared
PATIENCE = 600  # seconds


@dataclass
class Attempt:
    """A running command, one or several processes, and what it has printed so far."""

    processes: list[multiprocessing.Process]
    log: Path
    checkpoints: Path

    def is_over(self) -> bool:
        return not any(process.is_alive() for process in self.processes)

    def failed(self) -> bool:
        """Wait for the end; whether it was a bad one."""
        for process in self.processes:
            process.join(PATIENCE)
        return any(process.exitcode != 0 for process in self.processes)

    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def is_saving(self) -> bool:
        return any(self.checkpoints.glob(".step-*"))

    def wait_for(self, condition) -> bool:
        """Whether the condition came true before the command ended."""
        give_up = time.monotonic() + PATIENCE
        while not self.is_over():
            if condition():
                return True
            if time.monotonic() > give_up:
                raise TimeoutError(f"nothing happened for {PATIENCE} s; see {self.log}")
            time.sleep(0.001)
        return False


def anywhere(attempt: Attempt, rng: random.Random) -> None:
    attempt.wait_for(lambda: "it/s" in attempt.printed() or "s/it" in attempt.printed())
    pause(attempt, rng.uniform(0, 8))


def while_saving(attempt: Attempt, rng: random.Random) -> None:
    for _ in range(rng.randrange(1, 5)):
        attempt.wait_for(lambda: not attempt.is_saving())
        attempt.wait_for(attempt.is_saving)
    pause(attempt, rng.uniform(0, 0.03))


def while_scoring(attempt: Attempt, rng: random.Random) -> None:
    bars = rng.randrange(1, 3)
    attempt.wait_for(lambda: attempt.printed().count("evaluate (full):   0%") >= bars)
    pause(attempt, rng.uniform(0, 0.5))


def after_a_stage(attempt: Attempt, rng: random.Random) -> None:
    """Between two stages, or after the last one: while model, figures and metrics are written."""
    attempt.wait_for(lambda: "pretrain: S-mIoU" in attempt.printed() or "finetune: S-mIoU" in attempt.printed())
    pause(attempt, rng.uniform(0, 1.0))


MOMENTS = (anywhere, while_saving, while_scoring, after_a_stage)


def pause(attempt: Attempt, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not attempt.is_over() and time.monotonic() < until:
        time.sleep(0.001)


def start(dataset: Path, output: Path, processes: int) -> Attempt:
    options = ["--recipe", "scenes", "--output_dir", str(output), "--resume", f"dataset={dataset}", *SCHEDULE]
    log = output.with_suffix(".log")
    log.write_text("")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    commands = []
    for rank in range(processes):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        commands.append(FORK.Process(target=train, args=(options, log, ranks if processes > 1 else {})))
        commands[-1].start()
    return Attempt(commands, log, output / "checkpoints")


def train(options: list[str], log: Path, ranks: dict[str, int]) -> None:
    """`scripts/train.py OPTIONS` in this process; its lines go to the log."""
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.environ.update({name: str(value) for name, value in ranks.items()}, MASTER_ADDR="localhost")
    sys.argv = [str(SCRIPT), *options]
    runpy.run_path(str(SCRIPT), run_name="__main__")


def kill(attempt: Attempt, rng: random.Random) -> str | None:
    """Kill the command, or one of its processes; returns what was hit, None where it had ended already."""
    several = len(attempt.processes) > 1
    alone = several and rng.random() < 0.5
    saving = attempt.is_saving()
    if not all(process.is_alive() for process in attempt.processes):
        return None
    if alone:
        rng.choice(attempt.processes).kill()
        for process in attempt.processes:  # as a launcher does
            process.terminate()
            process.join(30)
    for process in attempt.processes:
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            for worker in psutil.Process(process.pid).children():
                worker.kill()
        process.kill()
        process.join(PATIENCE)
    if all(process.exitcode == 0 for process in attempt.processes):
        return None
    return ("one process" if alone else "all") + (", a checkpoint half-written" if saving else "")


def stress(processes: int, kills: int, folder: Path, rng: random.Random) -> Counter:
    """Kill `kills` times; returns how often what was hit. Raises where a run fails or ends in other numbers."""
    dataset = folder / "scenes"
    if not dataset.exists():
        preparing = FORK.Process(target=write_dataset, args=(dataset,), kwargs={"train": 48, "test": 16})
        preparing.start()  # this process starts no threads
        preparing.join()
    expected = folder / f"expected_{processes}"
    started = time.monotonic()
    attempt = start(dataset, expected, processes)
    if attempt.failed():
        raise RuntimeError(f"the run that nobody kills failed:\n{attempt.printed()}")
    print(f"{processes} process(es): a whole run takes {time.monotonic() - started:.0f} s", flush=True)

    hit, runs, plan = Counter(), 0, 0
    while hit.total() < kills:
        output, survived = folder / f"run_{processes}_{runs}", 0
        while True:
            attempt = start(dataset, output, processes)
            moment = None
            if hit.total() < kills and survived < KILLS_PER_RUN:
                moment = MOMENTS[plan % len(MOMENTS)]
                plan += 1
                moment(attempt, rng)
                what = kill(attempt, rng)
                if what is not None:
                    hit[f"{moment.__name__}: {what}"] += 1
                    survived += 1
                    print(f"  run {runs}: kill {hit.total()} {moment.__name__}: {what}", flush=True)
                    continue
            if attempt.failed():
                raise RuntimeError(f"run {runs} did not survive {survived} kills:\n{attempt.printed()}")
            break
        assert_equal_runs(output, expected)
        shutil.rmtree(output)
        print(f"run {runs}: equal after {survived} kills ({time.monotonic() - started:.0f} s)", flush=True)
        runs += 1
    print(f"{processes} process(es): {hit.total()} kills survived, {runs} runs bit-identical", flush=True)
    return hit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40, help="for each number of processes (default: 40)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        for processes in args.processes:
            hit = stress(processes, args.kills, Path(folder), random.Random(args.seed + processes))
            for what, times in sorted(hit.items()):
                print(f"{times:4} {what}")


if __name__ == "__main__":
    main()
