"""Where a run's news goes: its own file, every logger, and what loggers can show beside scalars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from interstack.tracking.boards import open_boards
from interstack.tracking.event_figures import event_figures, step_index
from interstack.tracking.events import Event, EventKind, append_event, read_events


class Outlets:
    """Tells news wherever somebody may look; rank zero alone does.

    Args:
        trainer: Whose run it is.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = trainer
        self._speaks = trainer.is_global_zero
        self._directory = Path(trainer.default_root_dir)
        self._boards = open_boards(trainer)

    def define(self, metrics: Sequence[str]) -> None:
        """Announce metrics by their exact names."""
        for board in self._boards:
            board.define(metrics)

    def catch_up(self) -> None:
        """Let boards know what the run told before it was cut, if it goes on now."""
        if self._boards and self._trainer.global_step > 0:
            history = read_events(self._directory)
            for board in self._boards:
                board.catch_up(history)

    def tell(self, kind: EventKind, **content: Any) -> None:  # noqa: ANN401, what JSON holds
        """Tell an event.

        Loggers are given the scalars of growths and recoveries here; those of points and
        validations come to them from Lightning, as what the module has logged.
        """
        if not self._speaks:
            return
        event: Event = {"kind": kind, "step": self._trainer.global_step, **content}
        append_event(self._directory, event)
        if kind in ("growth", "recovery"):
            for logger in self._trainer.loggers:
                logger.log_metrics(event_figures(event), step_index(event))
        for board in self._boards:
            board.show(event)
