"""What loggers are shown beside scalars: tables, pictures, notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from interstack.checkpointing.deferred import try_or_defer
from interstack.tracking.event_figures import event_figures, step_index
from interstack.tracking.events import Event
from interstack.tracking.lineage import COLUMNS
from interstack.tracking.pictures import similarity_picture
from interstack.tracking.summaries import STAGE_COLUMNS
from interstack.tracking.wandb_service import while_service_runs

_STEP = "trainer/global_step"


class Board(Protocol):
    """A logger that can show more than scalars."""

    def define(self, metrics: Sequence[str]) -> None:
        """Announce metrics by their exact names."""

    def catch_up(self, history: Sequence[Event]) -> None:
        """Learn what the run told before it was cut."""

    def show(self, event: Event) -> None:
        """Show what scalars can't tell: lineages, tables of stages, maps of similarity."""


def open_boards(trainer: L.Trainer) -> list[Board]:
    """Return a board for each of the Trainer's loggers that can show more; rank zero alone has any.

    Other loggers get the same scalars, and everything is in ``events.jsonl`` in any case.
    """
    if not trainer.is_global_zero:
        return []
    boards = (_board(logger) for logger in trainer.loggers)
    return [board for board in boards if board is not None]


def _board(logger: Logger) -> Board | None:
    if isinstance(logger, WandbLogger):
        return WandbBoard(logger)
    return TensorBoardBoard(logger) if isinstance(logger, TensorBoardLogger) else None


class WandbBoard:
    """Weights & Biases: tables, pictures, an alert a growth; everything offline as well.

    Args:
        logger: Lightning's.
    """

    def __init__(self, logger: WandbLogger) -> None:
        self._logger = logger
        self._stages: list[Event] = []
        self._waiting: list[Event] = []  # for space, since W&B copies tables and pictures

    def define(self, metrics: Sequence[str]) -> None:
        """Let each metric be drawn against the optimizer step; any of the axes serves as well.

        Exact names: Lightning's logger binds ``*`` to the same step first.
        """
        while_service_runs(self._logger, lambda: self._define(metrics))

    def _define(self, metrics: Sequence[str]) -> None:
        run = self._logger.experiment
        run.define_metric(_STEP)
        for name in metrics:
            run.define_metric(name, step_metric=_STEP)

    def catch_up(self, history: Sequence[Event]) -> None:
        """Log what the run in W&B lacks of its own beginning.

        A run that goes on offline is a new directory of the same id, which takes the place of the
        earlier one when it is synced: so it has to hold everything. Online it lacks what was logged
        while W&B could not be reached.
        """
        while_service_runs(self._logger, lambda: self._catch_up(history))

    def _catch_up(self, history: Sequence[Event]) -> None:
        run = self._logger.experiment
        known = run.summary.get(_STEP) if run.resumed and not run.offline else None
        for event in history:
            if known is None or step_index(event) > known:
                if figures := event_figures(event):
                    self._log(event, figures)
                self._show(event)
            elif event["kind"] == "stage":
                self._stages.append(event)

    def show(self, event: Event) -> None:
        """Log tables and pictures, and an alert at a growth; later where the disk is full."""
        self._waiting.append(event)
        path = Path(self._logger.experiment.dir)
        try_or_defer(path, lambda: while_service_runs(self._logger, self._show_waiting))

    def _show_waiting(self) -> None:
        while self._waiting:
            self._show_one(self._waiting[0])
            self._waiting.pop(0)

    def _show_one(self, event: Event) -> None:
        self._show(event)
        if event["kind"] == "growth":
            before, after = event["validation_before"], event["validation_after"]
            known = before is not None and after is not None
            loss = f": validation {before:.4f} → {after:.4f}" if known else ""
            title = f"grown from {event['from_depth']} to {event['to_depth']} layers"
            text = f"step {event['step']:,}, {event['operator']}{loss}"
            self._logger.experiment.alert(title, text)

    def _show(self, event: Event) -> None:
        import wandb

        match event["kind"]:
            case "growth":
                rows = [[row[column] for column in COLUMNS] for row in event["layers"]]
                table = wandb.Table([*COLUMNS], rows)
                self._log(event, {f"growth/lineage_{event['to_depth']}": table})
            case "stage":
                if event not in self._stages:  # else it is tried again
                    self._stages.append(event)
                rows = [[stage[column] for column in STAGE_COLUMNS] for stage in self._stages]
                self._log(event, {"stages/summary": wandb.Table([*STAGE_COLUMNS], rows)})
            case "similarity":
                self._log(event, {"similarity/layers": wandb.Image(similarity_picture(event))})

    def _log(self, event: Event, content: Mapping[str, Any]) -> None:
        self._logger.experiment.log({**content, _STEP: step_index(event)})


class TensorBoardBoard:
    """TensorBoard: pictures and a line of text a growth.

    Args:
        logger: Lightning's.
    """

    def __init__(self, logger: TensorBoardLogger) -> None:
        self._logger = logger

    def define(self, metrics: Sequence[str]) -> None:
        """Nothing: TensorBoard has its steps."""

    def catch_up(self, history: Sequence[Event]) -> None:
        """Nothing: the earlier part's file is beside this one's."""

    def show(self, event: Event) -> None:
        """Write tables and pictures."""
        writer, step = self._logger.experiment, step_index(event)
        match event["kind"]:
            case "growth":
                rows = [COLUMNS, ["---"] * len(COLUMNS)]
                rows += [[str(row[column]) for column in COLUMNS] for row in event["layers"]]
                table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
                writer.add_text("growth/lineage", table, step)
            case "stage":
                lines = [f"- {column}: {event[column]}" for column in STAGE_COLUMNS]
                writer.add_text("stages/summary", "\n".join(lines), step)
            case "similarity":
                import numpy as np

                picture = np.asarray(similarity_picture(event))
                writer.add_image("similarity/layers", picture, step, dataformats="HWC")
