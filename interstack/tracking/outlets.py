"""Where a run's news goes: its own file, every logger, and what loggers can show beside scalars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from interstack.tracking.boards import open_boards
from interstack.tracking.events import EventKind, append_event
from interstack.tracking.layer_similarity import LayerSimilarity


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

    def tell(self, kind: EventKind, **content: Any) -> None:  # noqa: ANN401, what JSON holds
        """Write an event into the run's own file."""
        if self._speaks:
            append_event(self._directory, kind, self._trainer.global_step, **content)

    def log(self, step: int, figures: Mapping[str, float | None]) -> None:
        """Give every logger scalars, as one row; figures that aren't known are left out.

        Args:
            step: Index of the optimizer step that they belong to, counted from 0 as by Lightning.
            figures: By their names, those of the axes among them.
        """
        if not self._speaks:
            return
        known = {name: float(value) for name, value in figures.items() if value is not None}
        for logger in self._trainer.loggers:
            logger.log_metrics(known, step)

    def show_growth(self, content: Mapping[str, Any]) -> None:
        """Show a growth: its lineage, and a note that it has come."""
        for board in self._boards:
            board.growth(self._trainer.global_step, content)

    def show_stage(self, summary: Mapping[str, Any]) -> None:
        """Show what a stage took and brought."""
        for board in self._boards:
            board.stage(self._trainer.global_step, summary)

    def show_similarity(self, lineage: Sequence[int], maps: LayerSimilarity) -> None:
        """Show how alike layers are."""
        for board in self._boards:
            board.similarity(self._trainer.global_step, lineage, maps)
