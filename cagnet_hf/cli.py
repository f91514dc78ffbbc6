"""What the command-line scripts share: a user's mistake ends in one line and exit code 2."""

import sys
from collections.abc import Callable


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
