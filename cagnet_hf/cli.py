"""`cagnet-hf COMMAND`: finds the command, parses its arguments, and tells what went wrong in one line."""

import argparse
import inspect
import io
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from importlib import import_module
from pathlib import Path

from .commands import COMMANDS
from .commands.arguments import arguments_of, parser_of, parser_of_words, summary

PROGRAM = "cagnet-hf"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The command's name and its arguments; what this process was started with when None.

    Returns:
        The exit code: 0, or 2 for bad input.
    """
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name not in COMMANDS:
        from .data.benchmarks import did_you_mean

        known = f"`{PROGRAM} --help` lists the commands"
        print(f"error: no command {name!r}{did_you_mean(name, COMMANDS)}; {known}", file=sys.stderr)
        return 2
    parser = build_parser(name)
    # Options may stand between positional arguments; argparse has no such thing for a command of words.
    parse = parser.parse_args if hasattr(_module(name), "WORDS") else parser.parse_intermixed_args
    launcher, told = launched_by(*_parent(), arguments=arguments), io.StringIO()  # now: the launcher may end first
    try:
        with redirect_stderr(told):
            parsed = vars(parse(arguments))
    except SystemExit as end:
        if end.code:
            _refuse(told.getvalue().rstrip("\n"), launcher)
        raise
    function = parsed.pop("function")
    use_every_core()
    hide_gpus_from_cpu_training()
    with messages():
        return run(lambda: function(**arguments_of(function, parsed)), resumed_by=(name, arguments), launcher=launcher)


def overview() -> str:
    """The commands, with one line about each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {_summary(name)}" for name in COMMANDS]
    head = f"usage: {PROGRAM} COMMAND ...\n\nZero-shot semantic segmentation: train, score and use models."
    return "\n".join([head, "", "commands:", *lines, "", f"`{PROGRAM} COMMAND --help` tells what a command takes."])


def build_parser(name: str) -> argparse.ArgumentParser:
    """The parser of a command: of the function of its name, or of the functions in its module's `WORDS`."""
    module, prog = _module(name), f"{PROGRAM} {name}"
    if hasattr(module, "WORDS"):
        return parser_of_words(module.WORDS, prog, inspect.getdoc(module))
    return parser_of(getattr(module, name), prog)


def _summary(name: str) -> str:
    module = _module(name)
    return summary(module if hasattr(module, "WORDS") else getattr(module, name))


def _module(name: str):
    return import_module(f".commands.{name}", __package__)


def run(
    command: Callable[[], None],
    *,
    resumed_by: tuple[str, Sequence[str]] | None = None,
    launcher: Sequence[str] = (),
) -> int:
    """Run a command's body: an error that describes bad input becomes the line `error: ...` on stderr.

    Args:
        command: The body.
        resumed_by: The name and the arguments of a command that can be stopped and resumed.
        launcher: The words of a launcher that started this process, up to the arguments.

    Returns:
        The exit code: 0, or 2 for bad input.
    """
    from .data.names import printable
    from .training.interruption import Stopped

    try:
        command()
    except Stopped:
        logging.getLogger(__name__).info("Stopped; to go on: %s", resuming_command(*resumed_by, launcher))
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        if not _is_foreseen(error):
            raise
        _refuse(f"error: {printable(one_line(error))}", launcher)
        return 2
    _leave_process_group()
    return 0


def _is_foreseen(error: Exception) -> bool:
    """Whether an error is of the input or of the machine, and no fault of this program."""
    if isinstance(error, RecursionError) or not isinstance(error, RuntimeError):
        return True
    # What PyTorch says of memory, of a GPU's or of its own, and of a data worker that was killed.
    said = str(error)
    return any(part in said for part in ("out of memory", "can't allocate memory", "DataLoader worker"))


def one_line(error: Exception) -> str:
    """An error's message; of an error that a data worker sent with its traceback, the last line."""
    if isinstance(error, RecursionError):
        return "the input is nested too deeply"
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, MemoryError):
        lines = ["not enough memory: choose a smaller batch or image size"]
    if "Traceback" in str(error):
        return lines[-1].split(": ", 1)[-1]
    return " ".join(line.strip() for line in lines)


def resuming_command(name: str, arguments: Sequence[str], launcher: Sequence[str] = ()) -> str:
    """The command that goes on with this one: the way it was started, with `--resume` where it takes that."""
    arguments = list(arguments)
    if "--resume" in build_parser(name).format_usage() and "--resume" not in arguments:
        arguments.insert(0, "--resume")
    started = Path(sys.argv[0])
    words = ["python", os.path.relpath(started)] if started.name == f"{name}.py" else [PROGRAM, name]
    return shlex.join([*(launcher or words), *arguments])


def launched_by(*words: str, arguments: Sequence[str]) -> list[str]:
    """The words of `accelerate launch` or `torchrun` with all their options, up to our arguments; empty for another
    program.

    Args:
        words: The command line of the process that started this one.
        arguments: What stands at its end, where it is a launcher.
    """
    own = len(words) - len(arguments)
    for place, word in enumerate(words[:own]):
        name = Path(word).name
        if list(words[own:]) == list(arguments) and name in ("accelerate", "accelerate-launch", "torchrun"):
            on_cpus = "ACCELERATE_USE_CPU" in os.environ and name == "torchrun"  # accelerate has an option for that
            return [*(["ACCELERATE_USE_CPU=true"] if on_cpus else []), name, *words[place + 1 : own]]
    return []


def _parent() -> list[str]:
    """The command line of the process that started this one; empty where it cannot be known."""
    import psutil

    try:
        return psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []


def _refuse(text: str, launcher: Sequence[str]) -> None:
    """Say what is wrong, and the last line once more below the traceback that a launcher writes of a failure."""
    print(text, file=sys.stderr, flush=True)
    told_by_us = not launcher or {"--quiet", "-q"} & {*launcher} or os.environ.get("RANK", "0") != "0"
    if told_by_us or not hasattr(os, "fork"):
        return
    import psutil

    with suppress(psutil.Error):
        parent = psutil.Process(os.getppid())
        if not os.fork():
            _say_after(parent, text.splitlines()[-1])


def _say_after(process, line: str) -> None:
    """The rest of a process of its own: wait for the end of another one, and say a line."""
    import psutil

    try:
        os.setsid()  # torchrun ends the process group of a command that failed
        until = time.monotonic() + 300  # a starved machine may take long to end a launcher
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        os.write(2, f"{line}\n".encode())
        os._exit(0)


@contextmanager
def messages() -> Iterator[None]:
    """Within, what the package tells goes to the terminal: messages to stdout, warnings to stderr."""
    logger, handler = logging.getLogger(__package__), _Terminal()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Terminal(logging.Handler):
    """Plain lines, above a progress bar where there is one; of several processes only the first tells."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm.auto import tqdm

        from .data.names import printable

        warns = record.levelno >= logging.WARNING
        if warns or os.environ.get("RANK", "0") == "0":
            tqdm.write(printable(self.format(record), lines=True), file=sys.stderr if warns else sys.stdout)


def use_every_core() -> None:
    """Let a single process that `accelerate launch` started use all cores: the launcher gives it one thread.

    Several processes share the machine as the launcher says; a `python` of its own has what OMP_NUM_THREADS says.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    if launched and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        import psutil
        import torch

        torch.set_num_threads(psutil.cpu_count(logical=False) or 1)


def hide_gpus_from_cpu_training() -> None:
    """Where ACCELERATE_USE_CPU asks for CPUs, let PyTorch see no GPU: processes that wait for each other would each
    look for one of their own. This lasts until the process ends.
    """
    if os.environ.get("ACCELERATE_USE_CPU"):
        from accelerate.utils import parse_flag_from_env

        if parse_flag_from_env("ACCELERATE_USE_CPU"):
            os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _leave_process_group() -> None:
    """Let the processes of a launched command part in good order."""
    torch = sys.modules.get("torch")  # not imported for this alone
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
