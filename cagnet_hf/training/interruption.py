"""SIGTERM, which schedulers send before they kill: a run saves what it has and ends in good order."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(BaseException):
    """SIGTERM ended the run; it can be resumed. As KeyboardInterrupt no error, and nobody's to catch on the way."""


class StopSignal:
    """Between updates of the weights SIGTERM ends the run at once, among them it waits to be asked about.

    In use, `asked` tells whether the signal came. Only the main thread hears signals; elsewhere nothing changes.
    """

    def __init__(self):
        self.asked = False
        self._waits = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Within, SIGTERM raises `Stopped`, or waits in `until_asked`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGTERM, self._hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    @contextmanager
    def until_asked(self, waits: bool = True) -> Iterator[None]:
        """Within, SIGTERM only sets `asked`; with `waits=False` it raises again."""
        before, self._waits = self._waits, waits
        try:
            if self.asked and not waits:
                raise Stopped
            yield
        finally:
            self._waits = before

    def _hear(self, number, frame) -> None:
        self.asked = True
        if not self._waits:
            raise Stopped
