"""Signals that end a run: noted at once, obeyed between two steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""A scheduler's time limit or pre-emption, its warning beforehand, and Ctrl-C."""


class StopRequest:
    """Remembers the first signal that is to stop a run; a context manager too.

    A checkpoint written inside a handler would catch the run in the midst of a step. Lightning's
    SLURM handler does that, and its SIGTERM handler starts a collective, which the other ranks may
    not be ready for; both are replaced while a run trains.

    A second Ctrl-C stops at once, by a ``KeyboardInterrupt``.

    Args:
        promise: What follows, for the message when a signal comes.

    Attributes:
        received: The signal, or None.
    """

    def __init__(self, promise: str = "stopping after this step, with a checkpoint") -> None:
        self._promise = promise
        self.received: signal.Signals | None = None
        self._earlier: dict[signal.Signals, Any] = {}
        self._pid = os.getpid()

    def install(self) -> None:
        """Install the handlers; only a process' main thread can."""
        if self._earlier or threading.current_thread() is not threading.main_thread():
            return
        self._pid = os.getpid()
        self.received = None
        for each in STOP_SIGNALS:
            self._earlier[each] = signal.signal(each, self._note)

    def uninstall(self) -> None:
        """Put the earlier handlers back."""
        for each, handler in self._earlier.items():
            signal.signal(each, handler if handler is not None else signal.SIG_DFL)
        self._earlier = {}

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.uninstall()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a forked decoding worker: the training process decides
        again = self.received is not None
        self.received = self.received or signal.Signals(number)
        if again and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        if not again:
            # logging and print are not safe inside a handler
            os.write(2, f"\n{self.received.name} received: {self._promise}\n".encode())
