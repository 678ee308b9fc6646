"""Where progress is shown: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
from typing import Final, NamedTuple, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_SHORTEST_BAR: Final = 8
"""Columns, with a space on either side."""


class RunPosition(NamedTuple):
    """How much of a run is done; the total is None where nothing tells it beforehand."""

    done: int
    total: int | None
    unit: str

    @property
    def share(self) -> float | None:
        """The same as a share, 0 to 1; None without a total."""
        return min(1.0, self.done / self.total) if self.total else None


class Reading(NamedTuple):
    """What is to be shown.

    Attributes:
        title: What is going on, as words that stand before the bar.
        position: How much of it is done.
        figures: What was measured, as words that stand behind the bar.
        left: When it will end, in words; the bar has a guess of its own if nothing is said.
    """

    title: tuple[str, ...]
    position: RunPosition
    figures: tuple[str, ...] = ()
    left: tuple[str, ...] | None = None

    @property
    def counted(self) -> str:
        """The position in words."""
        done, total, unit = self.position
        return f"{unit} {done:,}" if total is None else f"{unit} {done:,}/{total:,}"


class Display(Protocol):
    """Shows readings.

    Attributes:
        interval: Seconds that should lie between two readings.
        is_live: Whether a reading takes the place of the last one.
    """

    interval: float
    is_live: bool

    def show(self, reading: Reading) -> None:
        """Show a reading."""

    def say(self, line: str) -> None:
        """Print a line that stays."""

    def close(self) -> None:
        """Leave the last reading on the screen."""


class LiveDisplay:
    """A bar that stays in its line.

    Args:
        interval: Seconds between two readings.
        console: The terminal.
    """

    is_live = True

    def __init__(self, interval: float, console: Console) -> None:
        self.interval = interval
        self._console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def show(self, reading: Reading) -> None:
        """Draw the bar."""
        title = " · ".join(reading.title)
        figures = self._fitting(reading, len(title))
        done, total, _ = reading.position
        if self._progress is None:
            self._progress = self._start(own_clock=reading.left is None)
            # Beginning where a resumed run does, or else the time left would be guessed from it.
            self._task = self._progress.add_task(title, total=total, completed=done, figures="")
        self._progress.update(
            self._task,
            description=title,
            total=total,
            completed=done,
            figures=figures,
            refresh=True,
        )

    def _fitting(self, reading: Reading, taken: int) -> str:
        """Return what stands behind the bar; on a narrow terminal without the last figures."""
        figures = list(reading.figures)
        while True:
            words = " · ".join((reading.counted, *figures, *(reading.left or ())))
            if not figures or taken + _SHORTEST_BAR + len(words) <= self._console.width:
                return words
            figures.pop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        with contextlib.suppress(OSError):  # as in LineDisplay
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Stop drawing."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _start(self, *, own_clock: bool) -> Progress:
        clock = [TimeRemainingColumn(compact=True, elapsed_when_finished=True)]
        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}", markup=False),
            *(clock if own_clock else ()),
            console=self._console,
            auto_refresh=False,  # drawn by the training loop: no thread beside it
            expand=True,
        )
        progress.start()
        return progress


class LineDisplay:
    """Plain lines without control codes, for log files and pipes.

    Args:
        interval: Seconds between two readings.
    """

    is_live = False

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._last: Reading | None = None

    def show(self, reading: Reading) -> None:
        """Print a line, unless it would repeat the last one."""
        if reading != self._last:
            self.say(
                ", ".join(
                    (*reading.title, reading.counted, *reading.figures, *(reading.left or ()))
                )
            )
        self._last = reading

    def say(self, line: str) -> None:
        """Print a line."""
        with contextlib.suppress(OSError):  # the log file's disk is full: no reason to stop
            print(line, flush=True)

    def close(self) -> None:
        """Do nothing."""


def open_display(refresh_seconds: float, line_seconds: float) -> Display:
    """Choose the display for where standard output goes.

    Args:
        refresh_seconds: Seconds between two readings on a terminal.
        line_seconds: Seconds between two readings elsewhere.
    """
    console = Console()
    if sys.stdout.isatty() and not console.is_dumb_terminal:
        return LiveDisplay(refresh_seconds, console)
    return LineDisplay(line_seconds)
