"""What the commands share: how one is found, what it says, and how a stopped one goes on."""

import logging
import os
import subprocess
import sys

import psutil
import pytest
import torch
from conftest import REPOSITORY

from cagnet_hf.cli import build_parser, launched_by, main, messages, one_line, resuming_command, run, use_every_core
from cagnet_hf.commands import COMMANDS
from cagnet_hf.methods import LOSSES

# Commands


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]], ids=" ".join)
def test_the_commands_are_listed_with_a_line_each(argv, capsys):
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: cagnet-hf COMMAND")
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert listed == list(COMMANDS)
    assert max(map(len, lines)) <= 80


def test_a_misspelt_command_gets_the_nearest_one(capsys):
    assert main(["trian", "--recipe", "scenes"]) == 2
    printed = capsys.readouterr()
    assert printed.err == ("error: no command 'trian'; did you mean 'train'?; `cagnet-hf --help` lists the commands\n")
    assert printed.out == ""


def test_a_command_without_its_name_s_arguments_tells_what_is_missing(capsys):
    with pytest.raises(SystemExit) as end:
        main(["predict", "--output", "out"])
    assert end.value.code == 2
    assert "the following arguments are required: --model" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_s_help_says_what_every_argument_is(name):
    parsers = [build_parser(name)]
    for parser in parsers:
        assert parser.description
        for action in parser._actions:
            parsers += (action.choices or {}).values() if isinstance(action.choices, dict) else []
            assert action.help or action.metavar == "WORD"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_script_of_its_name(name):
    text = (REPOSITORY / "scripts" / f"{name}.py").read_text()
    assert f'sys.exit(main(["{name}", *sys.argv[1:]]))' in text
    assert "sys.path" not in text


def test_the_help_of_training_says_what_the_losses_are():
    told = " ".join(build_parser("train").format_help().split())
    assert all(f"{name}: {meaning}" in told for name, meaning in LOSSES.items())


# Messages


def test_messages_go_to_stdout_and_warnings_to_stderr(capsys):
    logger = logging.getLogger("cagnet_hf.apps.training")
    with messages():
        logger.info("Wrote %s", "out")
        logger.warning("left out: %s", "a.png")
    logger.info("not heard")
    assert tuple(capsys.readouterr()) == ("Wrote out\n", "left out: a.png\n")


def test_of_several_processes_the_first_tells(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with messages():
        logging.getLogger("cagnet_hf").info("Wrote out")
    assert capsys.readouterr().out == ""


def test_a_user_s_mistake_is_one_line(capsys):
    def fail():
        raise ValueError("two\n  lines")

    assert run(fail) == 2
    assert capsys.readouterr().err == "error: two lines\n"


def test_an_error_of_a_data_worker_is_its_last_line():
    error = ValueError(
        "Caught ValueError.\nTraceback (most recent call last):\n  File x\nValueError: a.png: damaged\n"
    )
    assert one_line(error) == "a.png: damaged"


# Going on


@pytest.fixture
def started(monkeypatch):
    """`started(program, **environment)`: as if the process were started so."""

    def start(program: str, **environment):
        for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", [program])

    return start


ARGUMENTS = ["--recipe", "scenes", "seed=1"]


@pytest.mark.parametrize(
    ("program", "parent", "command"),
    [
        ("/usr/bin/cagnet-hf", "bash", "cagnet-hf train"),
        ("scripts/train.py", "bash", "python scripts/train.py"),
        *(
            (program, f"/usr/bin/python3 /usr/bin/{launcher}", launcher)
            for program, launcher in [
                ("scripts/train.py", "accelerate launch scripts/train.py"),
                ("scripts/train.py", "accelerate launch --mixed_precision bf16 --num_processes 2 scripts/train.py"),
                ("cagnet_hf/__main__.py", "accelerate launch --config_file my.yaml -m cagnet_hf train"),
                ("scripts/train.py", "torchrun --standalone --nproc_per_node 2 scripts/train.py"),
            ]
        ),
    ],
)
def test_a_stopped_run_goes_on_by_the_command_that_started_it(program, parent, command, started):
    started(program)
    launcher = launched_by(*parent.split(), *ARGUMENTS, arguments=ARGUMENTS)
    assert resuming_command("train", ARGUMENTS, launcher) == f"{command} --resume --recipe scenes seed=1"
    assert (
        resuming_command("train", ["--resume", *ARGUMENTS], launcher) == f"{command} --resume --recipe scenes seed=1"
    )


@pytest.mark.parametrize(("asked", "visible"), [("true", ""), ("1", ""), ("false", "0"), ("", "0")])
def test_a_command_on_cpus_sees_no_gpu(asked, visible, started, monkeypatch):
    """Of several processes on CPUs, each would look for a GPU of its own when they wait for each other."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    started("cagnet-hf", ACCELERATE_USE_CPU=asked)
    assert main(["recipes", "scenes"]) == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_several_processes_on_cpus_go_on_there(started):
    started("cagnet_hf/__main__.py", ACCELERATE_USE_CPU="true")
    words = ["torchrun", "--standalone", "--nproc_per_node", "3", "-m", "cagnet_hf", "train"]
    launcher = launched_by("python", *words, *ARGUMENTS, arguments=ARGUMENTS)
    assert resuming_command("train", ARGUMENTS, launcher) == (
        f"ACCELERATE_USE_CPU=true {' '.join(words)} --resume --recipe scenes seed=1"
    )


def test_a_launcher_of_another_command_is_none():
    assert launched_by("accelerate", "launch", "other.py", arguments=ARGUMENTS) == []
    assert launched_by(arguments=[]) == []


@pytest.mark.parametrize("arguments", [["nosuch"], ["--nosuch"]])
@pytest.mark.parametrize("options", [[], ["--quiet"]])
def test_below_a_launcher_s_traceback_the_last_line_is_the_command_s(arguments, options, tmp_path):
    (tmp_path / "accelerate").write_text(
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, *sys.argv[-2:]])\n"
        "sys.exit(1 if '--quiet' in sys.argv else 'Traceback of the launcher')\n"
    )
    command = [sys.executable, tmp_path / "accelerate", "launch", *options, REPOSITORY / "scripts/recipes.py"]
    finished = subprocess.run([*command, *arguments], capture_output=True, text=True)
    told = [line for line in finished.stderr.splitlines() if "error: " in line]
    assert len(told) == (1 if options else 2)
    assert finished.stderr.splitlines()[-1] == told[0]
    assert ("Traceback of the launcher" in finished.stderr) == (not options)


def test_a_comparison_resumes_by_itself(started):
    started("/usr/bin/cagnet-hf")
    assert resuming_command("compare", ["--benchmark", "scenes"]) == "cagnet-hf compare --benchmark scenes"


# Threads


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
