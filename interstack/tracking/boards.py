"""What loggers are shown beside scalars: tables, pictures, notes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from interstack.errors import RunInterrupted
from interstack.tracking.layer_similarity import LayerSimilarity
from interstack.tracking.lineage import COLUMNS, block_names
from interstack.tracking.pictures import similarity_picture

log = logging.getLogger(__name__)

_STEP = "trainer/global_step"


class Board(Protocol):
    """A logger that can show more than scalars."""

    def define(self, metrics: Sequence[str]) -> None:
        """Announce metrics by their exact names."""

    def growth(self, step: int, content: Mapping[str, Any]) -> None:
        """Show a growth: its lineage, and what it did to the validation loss."""

    def stage(self, step: int, summary: Mapping[str, Any]) -> None:
        """Show what a stage took and brought."""

    def similarity(self, step: int, lineage: Sequence[int], maps: LayerSimilarity) -> None:
        """Show how alike layers are."""


def open_boards(trainer: L.Trainer) -> list[Board]:
    """Return a board for each of the Trainer's loggers that can show more; rank zero alone has any.

    Other loggers get the same scalars, and everything is in ``events.jsonl`` in any case.
    """
    if not trainer.is_global_zero:
        return []
    boards = (_board(logger) for logger in trainer.loggers)
    return [board for board in boards if board is not None]


@contextmanager
def finished_wandb() -> Iterator[None]:
    """End the W&B run that is begun meanwhile, as failed if it fails; say how to sync it.

    W&B would do so when the process ends, but into files in colours as well, and behind the last
    value of every metric; ``WANDB_QUIET=false`` brings these back.
    """
    os.environ.setdefault("WANDB_QUIET", "true")
    earlier = _wandb_run()
    exit_code = 1
    try:
        yield
        exit_code = 0
    except RunInterrupted as stop:
        exit_code = stop.exit_status
        raise
    finally:
        run = _wandb_run()
        if run is not None and run is not earlier:
            directory = Path(run.dir).parent
            run.finish(exit_code)
            if run.offline:
                log.info("W&B was offline: wandb sync %s sends the run", directory)


def _wandb_run() -> Any:  # noqa: ANN401, W&B's
    """Return the run that is going on in this process; nothing is imported for that."""
    return getattr(sys.modules.get("wandb"), "run", None)


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
        self._stages: list[Mapping[str, Any]] = []

    def define(self, metrics: Sequence[str]) -> None:
        """Let each metric be drawn against the optimizer step; any of the axes serves as well.

        Exact names: Lightning's logger binds ``*`` to the same step first.
        """
        run = self._logger.experiment
        run.define_metric(_STEP)
        for name in metrics:
            run.define_metric(name, step_metric=_STEP)

    def growth(self, step: int, content: Mapping[str, Any]) -> None:
        """Log the lineage table, and an alert that names both depths and both losses."""
        import wandb

        rows = [[row[column] for column in COLUMNS] for row in content["layers"]]
        self._log(step, {f"growth/lineage_{content['to_depth']}": wandb.Table([*COLUMNS], rows)})
        before, after = content["validation_before"], content["validation_after"]
        title = f"grown from {content['from_depth']} to {content['to_depth']} layers"
        loss = "" if before is None or after is None else f": validation {before:.4f} → {after:.4f}"
        self._logger.experiment.alert(title, f"step {step:,}, {content['operator']}{loss}")

    def stage(self, step: int, summary: Mapping[str, Any]) -> None:
        """Log the table of the stages so far."""
        import wandb

        self._stages.append(summary)
        rows = [[stage[column] for column in summary] for stage in self._stages]
        self._log(step, {"stages/summary": wandb.Table([*summary], rows)})

    def similarity(self, step: int, lineage: Sequence[int], maps: LayerSimilarity) -> None:
        """Log the two maps as one picture."""
        import wandb

        picture = similarity_picture(maps, block_names(lineage))
        self._log(step, {"similarity/layers": wandb.Image(picture)})

    def _log(self, step: int, content: Mapping[str, Any]) -> None:
        self._logger.experiment.log({**content, _STEP: step})


class TensorBoardBoard:
    """TensorBoard: pictures and a line of text a growth.

    Args:
        logger: Lightning's.
    """

    def __init__(self, logger: TensorBoardLogger) -> None:
        self._logger = logger

    def define(self, metrics: Sequence[str]) -> None:
        """Nothing: TensorBoard has its steps."""

    def growth(self, step: int, content: Mapping[str, Any]) -> None:
        """Write the lineage as a table."""
        rows = ["| " + " | ".join(COLUMNS) + " |", "| --- " * len(COLUMNS) + "|"]
        rows += [
            "| " + " | ".join(str(row[column]) for column in COLUMNS) + " |"
            for row in content["layers"]
        ]
        self._logger.experiment.add_text("growth/lineage", "\n".join(rows), step)

    def stage(self, step: int, summary: Mapping[str, Any]) -> None:
        """Write the stage as text."""
        lines = [f"- {name}: {value}" for name, value in summary.items()]
        self._logger.experiment.add_text("stages/summary", "\n".join(lines), step)

    def similarity(self, step: int, lineage: Sequence[int], maps: LayerSimilarity) -> None:
        """Write the two maps as one picture."""
        import numpy as np

        picture = np.asarray(similarity_picture(maps, block_names(lineage)))
        self._logger.experiment.add_image("similarity/layers", picture, step, dataformats="HWC")
