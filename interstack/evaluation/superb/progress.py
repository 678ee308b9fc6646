"""How far a job has come: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

_LINE_SECONDS: Final = 60.0


class JobProgress:
    """Counts a job's steps.

    Args:
        name: Of the job.
        shown: Draw the bar where standard error is a terminal.
    """

    def __init__(self, name: str, *, shown: bool) -> None:
        console = Console(file=sys.stderr)  # as it is now, whatever is redirected later
        self._name = name
        self._drawn = shown and console.is_terminal
        self._said_at = time.monotonic()
        self._bar = Progress(
            TextColumn(name),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._drawn,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task(name, total=None, said="")

    def __enter__(self) -> Self:
        """Begin to show it."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        self._bar.stop()

    def advance(self, step: int, total: int, loss: float, best: tuple[float, int] | None) -> None:
        """Say where the job is.

        Args:
            step: Optimizer steps so far.
            total: Of how many.
            loss: Of the last one.
            best: The best value on the dev split and its step, if it has been judged.
        """
        judged = "" if best is None else f", best {best[0]:.4g} at step {best[1]}"
        said = f"loss {loss:.3f}{judged}"
        self._bar.update(self._task, completed=step, total=total, said=said)
        if not self._drawn and time.monotonic() - self._said_at >= _LINE_SECONDS:
            self._said_at = time.monotonic()
            log.info("%s: step %d/%d, %s", self._name, step, total, said)

    def say(self, what: str) -> None:
        """Say what is done now."""
        self._bar.update(self._task, said=what)
