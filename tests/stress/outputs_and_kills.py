"""Kills a training run while it writes what a finished run leaves, and gives every command an output that is not free.

    python tests/stress/outputs_and_kills.py --kills 12

A run is killed with SIGKILL while it writes the features of its resting backbone, the model folder, the figures or the
card. After every kill the folder holds no half-written model, and the same command with `--resume` finishes the run in
the same bytes. While a run is alive, a second run that starts in the folder is refused.

Then every command is given an output that exists, is a file in place of a folder or a folder in place of a file, is a
link, may not be written, or holds what the command reads. Every such command ends with exit code 2 and one line, and
nothing that lay there is changed. As root, a command that may not write runs as another user.

The commands are forked from this process, which has imported the packages.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # read by what follows

import datasets
import torch
from kill_and_resume import FORK, train

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from trained import arguments, assert_equal_runs, write_dataset  # noqa: E402

from cagnet_hf.cli import main as run_command  # noqa: E402
from cagnet_hf.training import features  # noqa: E402

FEATURES = "the feature cache"
# What is being written -> whether it has come. Whatever else a run comes to write gets a line here.
MOMENTS: dict[str, Callable[[Path], bool]] = {
    FEATURES: lambda run: any(cells.stat().st_size for cells in run.glob("features/*/cells.bin")),
    "the model folder": lambda run: (run / ".model.partial").exists() or (run / "model").exists(),
    "the figures": lambda run: (run / "figures").exists(),
    "the card": lambda run: (run / "figures" / "predictions.png").exists(),
}
CACHED = [
    *("feature_cache={}", "augmentation={scale_range: [1, 1], flip_probability: 0.5}"),
    *("stages.pretrain.scales=[1.0]", "stages.finetune.scales=[1.0]"),
    "stages.pretrain.network.multipliers.backbone=0",
]
NOBODY = 65534  # the user who owns nothing
MINE = "mine"  # what the files of the user hold


# Kills


def start(dataset: Path, run: Path):
    keys = arguments(dataset, run, *CACHED, resume=True)
    process = FORK.Process(target=train, args=(keys, run.with_suffix(".log"), {}))
    process.start()
    return process


def finished(process) -> int:
    process.join()
    return process.exitcode


def kill_while_writing(dataset: Path, expected: Path, run: Path, what: str, pause: float) -> bool:
    """Kill a run that begins, or that lacks only its report, while it writes something, and finish it; whether the run
    was hit."""
    if what != FEATURES:
        without_report(expected, run)
    first = start(dataset, run)
    while first.is_alive() and not MOMENTS[what](run):
        time.sleep(0.0005)
    time.sleep(pause / 10 if what == FEATURES else pause)
    hit = first.is_alive()
    first.kill()
    finished(first)
    if what == FEATURES:
        hit &= any('\n{"images"' not in index.read_text() for index in run.glob("features/*/index.jsonl"))
    if (run / "model").exists():  # whole, or not there
        weights = "model/model.safetensors"
        assert (run / weights).read_bytes() == (expected / weights).read_bytes()
        assert (run / "model" / "README.md").read_text().startswith("---")
    assert finished(start(dataset, run)) == 0, run.with_suffix(".log").read_text()
    assert_equal_runs(run, expected)
    assert not list(run.glob(".*.partial")) and not list(run.glob(".*.old"))
    shutil.rmtree(run)
    return hit


def without_report(expected: Path, run: Path) -> None:
    shutil.copytree(expected, run)
    for name in ("model", "figures"):
        shutil.rmtree(run / name)
    (run / "metrics.json").unlink()


def two_at_once(dataset: Path, expected: Path, run: Path) -> None:
    """A second run in a folder is kept out while the first one lives, and gets in once the first one is dead."""
    without_report(expected, run)
    first = start(dataset, run)
    while first.is_alive() and not MOMENTS["the model folder"](run):
        time.sleep(0.0005)
    os.kill(first.pid, signal.SIGSTOP)
    log = run.with_suffix(".log")
    before = len(log.read_text())
    assert finished(start(dataset, run)) == 2
    assert "another process is training" in log.read_text()[before:]
    first.kill()
    finished(first)
    assert finished(start(dataset, run)) == 0
    assert_equal_runs(run, expected)
    shutil.rmtree(run)


def kills(dataset: Path, expected: Path, folder: Path, number: int, rng: random.Random) -> None:
    hit = dict.fromkeys(MOMENTS, 0)
    while sum(hit.values()) < number:
        what = min(hit, key=hit.get)
        if kill_while_writing(dataset, expected, folder / "run", what, rng.uniform(0, 0.2)):
            hit[what] += 1
            print(f"kill {sum(hit.values())} while it wrote {what}: finished in the same bytes", flush=True)
    print(f"{sum(hit.values())} kills survived: {', '.join(f'{what} {times}' for what, times in hit.items())}")


# Outputs


class Place(NamedTuple):
    """Where a command reads and writes."""

    folder: Path
    run: Path
    dataset: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"


class Output(NamedTuple):
    """An output of a command.

    Attributes:
        name: The command, and the option where the command has several outputs.
        is_folder: Whether the output is a folder.
        argv: The command that writes a path.
        read: A file or a folder that the command reads; None where there is none that could be the output.
    """

    name: str
    is_folder: bool
    argv: Callable[[Place, Path], list[str]]
    read: Callable[[Place], Path] | None = None


def _photograph(place: Place) -> Path:
    return place.folder / "farm" / "images" / "one.png"


def _scored(command: str, option: str) -> Callable[[Place, Path], list[str]]:
    return lambda place, path: [
        *(command, "--model", str(place.model), "--dataset", str(place.dataset), option, str(path))
    ]


OUTPUTS = (
    Output("train", True, lambda p, out: ["train", *arguments(p.dataset, out)], lambda p: p.dataset),
    Output("evaluate", False, _scored("evaluate", "--output"), lambda p: p.model / "config.json"),
    Output("calibrate", False, _scored("calibrate", "--output"), lambda p: p.model / "config.json"),
    Output(
        "predict",
        False,
        lambda p, out: [*("predict", "--model", str(p.model), str(_photograph(p)), "--output", str(out.parent))],
        _photograph,
    ),
    Output(
        "export_onnx",
        False,
        lambda p, out: ["export_onnx", "--model", str(p.model), "--output", str(out)],
        lambda p: p.model / "model.safetensors",
    ),
    Output(
        "add_classes",
        True,
        lambda p, out: [
            *("add_classes", "--model", str(p.model), "--remove", "red striped cross"),
            "--output",
            str(out),
        ],
        lambda p: p.model,
    ),
    Output(
        "add_classes --scores",
        False,
        lambda p, out: [
            *("add_classes", "--model", str(p.model), "--class", "zebra", "--dataset", str(p.dataset)),
            *("--output", str(p.folder / "edited"), "--scores", str(out)),
        ],
        lambda p: p.model / "config.json",
    ),
    Output(
        "prepare_data folder",
        True,
        lambda p, out: [
            *("prepare_data", "folder", "--source", str(p.folder / "farm"), "--output", str(out), "--overwrite")
        ],
        lambda p: p.folder / "farm",
    ),
    Output(
        "prepare_data check",
        False,
        lambda p, out: [*("prepare_data", "check", str(p.dataset), "--benchmark", "scenes", "--sheet", str(out))],
        lambda p: p.dataset / "data" / "test-00000-of-00001.parquet",
    ),
    Output(
        "prepare_embeddings",
        False,
        lambda p, out: [
            *("prepare_embeddings", "--word_vectors", str(p.folder / "words.safetensors"), "--names", "red"),
            *("--output", str(out), "--overwrite"),
        ],
        lambda p: p.folder / "words.safetensors",
    ),
    Output(
        "convert_checkpoint",
        True,
        lambda p, out: [
            *("convert_checkpoint", str(p.folder / "given" / "c.pth"), "--output", str(out), "--overwrite")
        ],
        lambda p: p.folder / "given",
    ),
    Output(
        "compare",
        True,
        lambda p, out: [*("compare", "--benchmark", "scenes", "--rows", "spnet", "--output_dir", str(out))],
    ),
    Output(
        "from_names",
        True,
        lambda p, out: ["from_names", "cat", "dog", "--output", str(out)],
    ),
)


def taken(place: Place, output: Output) -> Path:
    """The output exists, and is the user's."""
    path = free(place, output)
    if output.is_folder:
        for name in ("notes.txt", "model/notes.txt", "metrics.json", "comparison.md", "config.json"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(MINE)
    else:
        path.write_text(MINE)
    return path


def of_the_other_kind(place: Place, output: Output) -> Path:
    """A file in place of a folder, a folder in place of a file."""
    path = free(place, output)
    if output.is_folder:
        path.write_text(MINE)
    else:
        path.mkdir()
        (path / "notes.txt").write_text(MINE)
    return path


def below_a_file(place: Place, output: Output) -> Path:
    path = free(place, output)
    shutil.rmtree(path.parent)
    path.parent.write_text(MINE)
    return path


def link(place: Place, output: Output) -> Path:
    """A link to what is the user's."""
    path = taken(place, output)
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)
    return path


def link_to_itself(place: Place, output: Output) -> Path:
    path = free(place, output)
    path.symlink_to(path)
    return path


def read_only(place: Place, output: Output) -> Path:
    """Nothing may be written where the output goes."""
    path = free(place, output)
    path.parent.chmod(0o555)
    return path


def holding_its_input(place: Place, output: Output) -> Path:
    """The output is what the command reads."""
    read = output.read(place)
    return read.with_suffix(".png") if output.name == "predict" else read


def around_its_input(place: Place, output: Output) -> Path:
    """The output is the folder above what the command reads."""
    return output.read(place).parent


NEED_INPUT = (holding_its_input, around_its_input)
OBSTACLES = (taken, of_the_other_kind, below_a_file, link, link_to_itself, read_only, holding_its_input)


def free(place: Place, output: Output) -> Path:
    """A path where nothing is yet, in a folder of its own."""
    folder = place.folder / "outputs"
    folder.mkdir()
    return folder / ("one.png" if output.name == "predict" else "out.safetensors" if not output.is_folder else "out")


def make_place(folder: Path, run: Path, dataset: Path) -> Place:
    place = Place(folder, run, dataset)
    shutil.copytree(run / "model", place.model)
    from miniature_archives import write_png
    from PIL import Image

    for kind in ("images", "masks"):
        (folder / "farm" / kind).mkdir(parents=True)
    for stem in ("one", "two", "three"):
        Image.new("RGB", (5, 4)).save(folder / "farm" / "images" / f"{stem}.png")
        write_png(folder / "farm" / "masks" / f"{stem}.png", torch.tensor([[0, 1, 1, 2, 255]] * 4).byte().numpy())
    (folder / "farm" / "classes.yaml").write_text(
        "classes:\n- {id: 0, name: nothing}\n- {id: 1, name: sheep}\n- {id: 2, name: cow}\n"
        "seen: [sheep]\nunseen: [cow]\nignored: [nothing]\n"
    )
    (folder / "farm" / "test.txt").write_text("one\n")
    (folder / "words.safetensors").write_text("red 1 2\n")
    (folder / "given").mkdir()
    torch.save({"weight": torch.zeros(1)}, folder / "given" / "c.pth")
    return place


def contents(folder: Path) -> dict[str, object]:
    """All that lies in a folder: of a file its bytes, of a link where it leads."""

    def entries() -> Iterator[tuple[str, object]]:
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            yield name, os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None

    return dict(entries())


def command(argv: list[str], log: Path, user: int | None) -> None:
    """Run a command in this process, as a user; its lines go to the log."""
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    if user is not None:
        os.setgid(user)
        os.setuid(user)
    sys.exit(run_command(argv))


def outputs(dataset: Path, run: Path, folder: Path) -> list[str]:
    """Run every command with every obstacle; returns what went wrong."""
    wrong, number = [], 0
    cases = [(output, obstacle) for output in OUTPUTS for obstacle in OBSTACLES]
    cases += [(output, around_its_input) for output in OUTPUTS if output.is_folder and output.name != "train"]
    cases = [(output, obstacle) for output, obstacle in cases if output.read or obstacle not in NEED_INPUT]
    for output, obstacle in cases:
        work = Path(tempfile.mkdtemp(dir=folder))
        work.chmod(0o755)
        started = time.monotonic()
        place = make_place(work, run, dataset)
        path = obstacle(place, output)
        user = NOBODY if obstacle is read_only and os.getuid() == 0 else None
        before = contents(work), contents(run), contents(dataset)
        log = folder / "command.log"
        process = FORK.Process(target=command, args=(output.argv(place, path), log, user))
        process.start()
        code = finished(process)
        lines = [line for line in log.read_text().replace("\r", "\n").splitlines() if line.startswith("error: ")]
        number += 1
        title = f"{output.name}, {obstacle.__name__.replace('_', ' ')}"
        if before != (contents(work), contents(run), contents(dataset)):
            wrong.append(f"{title}: something was changed")
        if code != 2 or len(lines) != 1 or "Traceback" in log.read_text():
            wrong.append(f"{title}: exit code {code}: {log.read_text()[-400:]}")
        print(f"{title}: {code} {' '.join(lines)[:200]} ({time.monotonic() - started:.1f} s)", flush=True)
        (work / "outputs").is_dir() and (work / "outputs").chmod(0o755)
        shutil.rmtree(work)
    print(f"{number} commands with an output that is not free, {len(wrong)} faults")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    torch.set_num_threads(1)
    features.TOGETHER = 4  # so that a kill leaves some of a dozen images
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)  # for the other user
        datasets.config.HF_DATASETS_CACHE = folder / "cache"
        dataset, expected = folder / "scenes", folder / "expected"
        preparing = FORK.Process(target=write_dataset, args=(dataset,))
        preparing.start()
        finished(preparing)
        assert finished(start(dataset, expected)) == 0, expected.with_suffix(".log").read_text()
        wrong = outputs(dataset, expected, folder)
        two_at_once(dataset, expected, folder / "run")
        print("a second run was kept out while the first one lived", flush=True)
        kills(dataset, expected, folder, args.kills, random.Random(args.seed))
    print(*wrong, sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
