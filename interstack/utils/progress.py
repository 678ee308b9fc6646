"""Progress display: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Final, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_REFRESH_SECONDS: Final = 0.5
_LINE_SECONDS: Final = 60.0
_SHORTEST_BAR: Final = 8
"""Columns, with a space on either side."""

log = logging.getLogger(__name__)


class RunPosition(NamedTuple):
    """How much of a run is done; the total is None where it is not known beforehand."""

    done: int
    total: int | None
    unit: str

    @property
    def share(self) -> float | None:
        """The same as a fraction, 0 to 1; None without a total."""
        return min(1.0, self.done / self.total) if self.total else None

    def __str__(self) -> str:
        done, total, unit = self
        return f"{unit} {done:,}" if total is None else f"{unit} {done:,}/{total:,}"


class Reading(NamedTuple):
    """What is to be shown.

    Attributes:
        title: What is going on; stands before the bar.
        position: How much of it is done.
        figures: What was measured; stands behind the bar.
        left: When it will end; None: the bar estimates that itself.
    """

    title: tuple[str, ...]
    position: RunPosition
    figures: tuple[str, ...] = ()
    left: tuple[str, ...] | None = None


class Display(ABC):
    """Shows readings.

    Args:
        interval: Seconds between two readings.

    Attributes:
        is_live: Whether a reading replaces the last one.
    """

    is_live: ClassVar[bool]

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._shown_at = float("-inf")

    @property
    def is_due(self) -> bool:
        """Whether the last reading is older than the interval."""
        return time.perf_counter() - self._shown_at >= self._interval

    def show(self, reading: Reading) -> None:
        """Show a reading now."""
        self._draw(reading)
        self._shown_at = time.perf_counter()

    def update(self, reading: Reading) -> None:
        """Show a reading if it is due, or the last one."""
        if self.is_due or reading.position.share == 1.0:
            self.show(reading)

    @abstractmethod
    def _draw(self, reading: Reading) -> None: ...

    @abstractmethod
    def print(self, line: str) -> None:
        """Print a line that stays."""

    def close(self) -> None:  # noqa: B027, lines need no end
        """Leave the last reading on the screen."""


class LiveDisplay(Display):
    """A bar that stays in its line.

    Args:
        interval: Seconds between two readings.
        console: The terminal.
        redirects: Whether what else is printed meanwhile appears above the bar.
    """

    is_live = True

    def __init__(self, interval: float, console: Console, *, redirects: bool = True) -> None:
        super().__init__(interval)
        self._console = console
        self._redirects = redirects
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def _draw(self, reading: Reading) -> None:
        title = " · ".join(reading.title)
        done, total, _ = reading.position
        if self._progress is None:
            self._progress = self._start(estimates=reading.left is None)
            # Starting where a resumed run does, or the time left would be estimated from it.
            self._task = self._progress.add_task(title, total=total, completed=done, figures="")
        self._progress.update(
            self._task,
            description=title,
            total=total,
            completed=done,
            figures=self._fitting(reading, len(title)),
            refresh=True,
        )

    def _start(self, *, estimates: bool) -> Progress:
        time_left = [TimeRemainingColumn(compact=True, elapsed_when_finished=True)]
        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}", markup=False),
            *(time_left if estimates else ()),
            console=self._console,
            auto_refresh=False,  # drawn by the training loop: no thread beside it
            expand=True,
            redirect_stdout=self._redirects,
            redirect_stderr=self._redirects,
        )
        progress.start()
        return progress

    def _fitting(self, reading: Reading, taken: int) -> str:
        """Return what stands behind the bar; on a narrow terminal without the last figures."""
        figures = list(reading.figures)
        while True:
            text = " · ".join((str(reading.position), *figures, *(reading.left or ())))
            if not figures or taken + _SHORTEST_BAR + len(text) <= self._console.width:
                return text
            figures.pop()

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        with contextlib.suppress(OSError):  # as in _print_line
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Stop drawing."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _print_line(line: str) -> None:
    with contextlib.suppress(OSError):  # the log file's disk is full: no reason to stop
        print(line, flush=True)


class LineDisplay(Display):
    """Plain lines without control codes, for log files and pipes.

    Args:
        interval: Seconds between two readings.
        emit: Writes a line; standard output by default.
    """

    is_live = False

    def __init__(self, interval: float, emit: Callable[[str], None] = _print_line) -> None:
        super().__init__(interval)
        self._emit = emit
        self._last: Reading | None = None

    def _draw(self, reading: Reading) -> None:
        if reading != self._last:
            title, position, figures, left = reading
            self._emit(", ".join((*title, str(position), *figures, *(left or ()))))
        self._last = reading

    def print(self, line: str) -> None:
        """Print a line."""
        self._emit(line)


def open_display(
    refresh_seconds: float = _REFRESH_SECONDS, line_seconds: float = _LINE_SECONDS
) -> Display:
    """Return the display that suits standard output.

    Args:
        refresh_seconds: Seconds between two readings on a terminal.
        line_seconds: Seconds between two readings elsewhere.
    """
    console = Console()
    if sys.stdout.isatty() and not console.is_dumb_terminal:
        return LiveDisplay(refresh_seconds, console)
    return LineDisplay(line_seconds)


@contextmanager
def job_display(*, draws: bool = True) -> Iterator[Display]:
    """Open a display for a job on standard error, whatever is redirected later.

    Args:
        draws: Draw a bar where standard error is a terminal; otherwise progress is logged.
    """
    console = Console(file=sys.stderr)
    display: Display = LineDisplay(_LINE_SECONDS, log.info)
    if draws and console.is_terminal:
        display = LiveDisplay(_REFRESH_SECONDS, console, redirects=False)
    try:
        yield display
    finally:
        display.close()
