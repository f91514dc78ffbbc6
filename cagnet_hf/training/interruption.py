"""SIGTERM, which schedulers send before they kill, and Ctrl-C: a run saves what it has and ends in good order."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(BaseException):
    """A signal ended the run; it can be resumed. As KeyboardInterrupt no error, and nobody's to catch on the way."""


class StopSignal:
    """Between updates of the weights SIGTERM or Ctrl-C ends the run at once, among them it waits to be asked about.

    A second Ctrl-C interrupts as ever, without a checkpoint.
    In use, `asked` tells whether the signal came. Only the main thread hears signals; elsewhere nothing changes.
    """

    def __init__(self):
        self.asked = False
        self._waits = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Within, a signal raises `Stopped`, or waits in `until_asked`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._process = os.getpid()
        numbers = [signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # else a job in the background
            numbers.append(signal.SIGINT)
        previous = {number: signal.signal(number, self._hear) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def until_asked(self, waits: bool = True) -> Iterator[None]:
        """Within, a signal only sets `asked`; with `waits=False` it raises again."""
        before, self._waits = self._waits, waits
        try:
            if self.asked and not waits:
                raise Stopped
            yield
        finally:
            self._waits = before

    def _hear(self, number, frame) -> None:
        if os.getpid() != self._process:  # a terminal's Ctrl-C reaches data workers, too; the run ends them
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if not self._waits:
            raise Stopped
