"""How far a cache has come: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

_LINE_SECONDS: Final = 60.0


class CacheProgress:
    """Counts utterances and audio.

    Args:
        seconds: Of audio in all; None if nobody knows.
        shown: Draw the bar where standard error is a terminal; one process is enough.
    """

    def __init__(self, seconds: float | None, *, shown: bool) -> None:
        console = Console(stderr=True)
        self._seconds = seconds
        self._done = 0.0
        self._utterances = 0
        self._drawn = shown and console.is_terminal
        self._said_at = time.monotonic()
        self._bar = Progress(
            TextColumn("targets"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._drawn,
        )
        self._task = self._bar.add_task("targets", total=seconds, said="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, num_utterances: int, seconds: float) -> None:
        """Count a batch.

        Args:
            num_utterances: How many it held.
            seconds: Of audio.
        """
        self._utterances += num_utterances
        self._done += seconds
        said = f"{self._utterances} utterances, {self._done / 3600:.2f} h"
        self._bar.update(self._task, completed=self._done, said=said)
        if not self._drawn and time.monotonic() - self._said_at >= _LINE_SECONDS:
            self._said_at = time.monotonic()
            share = f" ({self._done / self._seconds:.0%})" if self._seconds else ""
            log.info("targets of %s%s", said, share)
