"""What the command-line scripts share: a user's mistake ends in one line and exit code 2."""

import os
import shlex
import sys
from collections.abc import Callable

import psutil


def run(command: Callable[[], None]) -> int:
    """Run a command's body; errors that describe bad input become `error: ...` on stderr.

    Returns:
        The exit code: 0, or 2 for bad input.
    """
    try:
        command()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def one_line(error: Exception) -> str:
    """An error's message; of an error that a data worker sent with its traceback, the last line."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "Traceback" in str(error):
        return lines[-1].split(": ", 1)[-1]
    return " ".join(line.strip() for line in lines)


def resuming_command(script: str, argv: list[str] | None, option: str | None = "--resume") -> str:
    """The command that goes on with this one: the same arguments, and `option`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if option is not None and option not in arguments:
        arguments.insert(0, option)
    launcher = ["accelerate", "launch"] if "ACCELERATE_MIXED_PRECISION" in os.environ else ["python"]
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        launcher = ["accelerate", "launch", "--num_processes", os.environ["WORLD_SIZE"]]
    return shlex.join([*launcher, os.path.relpath(script), *arguments])


def use_every_core() -> None:
    """Let a single process that `accelerate launch` started use all cores: the launcher gives it one thread.

    Several processes share the machine as the launcher says; a `python` of its own has what OMP_NUM_THREADS says.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    if launched and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        import torch

        torch.set_num_threads(psutil.cpu_count(logical=False) or 1)
