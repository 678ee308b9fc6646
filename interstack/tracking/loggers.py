"""Loggers of a run's events: ``events.jsonl``, W&B and TensorBoard, with tables and pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike
from PIL import Image

from interstack.tracking.events import (
    Event,
    EventKind,
    append_event,
    event_figures,
    read_events,
    step_index,
)
from interstack.tracking.lineage import LAYER_COLUMNS
from interstack.tracking.stages import STAGE_COLUMNS
from interstack.tracking.wandb import while_service_runs
from interstack.utils.disk import try_or_defer

_STEP: Final = "trainer/global_step"


class RunLogger:
    """Logs events to the run's own file and to the Trainer's loggers, on rank zero alone.

    Args:
        trainer: The run's.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = trainer
        self._directory = Path(trainer.default_root_dir)
        self._loggers: list[EventLogger] = []
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(logger, WandbLogger):
                self._loggers.append(WandbEventLogger(logger))
            elif isinstance(logger, TensorBoardLogger):
                self._loggers.append(TensorBoardEventLogger(logger))

    def define(self, metrics: Sequence[str]) -> None:
        """Announce metrics by their exact names."""
        for logger in self._loggers:
            logger.define(metrics)

    def catch_up(self) -> None:
        """Let loggers continue those of an earlier process, if the run is resumed."""
        if self._loggers and self._trainer.global_step > 0:
            history = read_events(self._directory)
            for logger in self._loggers:
                logger.catch_up(history)

    def log(self, kind: EventKind, **content: Any) -> None:  # noqa: ANN401, what JSON holds
        """Log an event.

        Loggers get the scalars of growth steps and recoveries here; those of points and
        validations come to them from Lightning, as what the module has logged.
        """
        if not self._trainer.is_global_zero:
            return
        event: Event = {"kind": kind, "step": self._trainer.global_step, **content}
        append_event(self._directory, event)
        if kind in ("growth", "recovery"):
            for logger in self._trainer.loggers:
                logger.log_metrics(event_figures(event), step_index(event))
        for each in self._loggers:
            each.log(event)


class EventLogger:
    """A logger that can show more of an event than scalars."""

    def define(self, metrics: Sequence[str]) -> None:
        """Announce metrics by their exact names, if the logger wants them."""

    def catch_up(self, history: Sequence[Event]) -> None:
        """Continue a run that has logged these events, if its earlier log is not enough."""

    def log(self, event: Event) -> None:
        """Log what is no scalar: lineages, tables of stages, maps of similarity."""
        raise NotImplementedError


class WandbEventLogger(EventLogger):
    """Weights & Biases: tables, pictures, an alert a growth step; everything offline as well.

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

        A run that is resumed offline is a new directory of the same id, which replaces the earlier
        one when it is synced: so it has to hold everything. Online it lacks what was logged while
        W&B could not be reached.
        """
        while_service_runs(self._logger, lambda: self._catch_up(history))

    def _catch_up(self, history: Sequence[Event]) -> None:
        run = self._logger.experiment
        known = run.summary.get(_STEP) if run.resumed and not run.offline else None
        for event in history:
            if known is None or step_index(event) > known:
                if figures := event_figures(event):
                    self._write(event, figures)
                self._log(event)
            elif event["kind"] == "stage":
                self._stages.append(event)

    def log(self, event: Event) -> None:
        """Log tables and pictures, and an alert at a growth step; later where the disk is full."""
        self._waiting.append(event)
        path = Path(self._logger.experiment.dir)
        try_or_defer(path, lambda: while_service_runs(self._logger, self._log_waiting))

    def _log_waiting(self) -> None:
        while self._waiting:
            self._log(self._waiting[0])
            if self._waiting[0]["kind"] == "growth":
                self._alert(self._waiting[0])
            self._waiting.pop(0)

    def _alert(self, event: Event) -> None:
        before, after = event["validation_before"], event["validation_after"]
        known = before is not None and after is not None
        loss = f": validation {before:.4f} → {after:.4f}" if known else ""
        title = f"grown from {event['from_depth']} to {event['to_depth']} layers"
        text = f"step {event['step']:,}, {event['operator']}{loss}"
        self._logger.experiment.alert(title, text)

    def _log(self, event: Event) -> None:
        import wandb

        match event["kind"]:
            case "growth":
                rows = [[row[column] for column in LAYER_COLUMNS] for row in event["layers"]]
                table = wandb.Table([*LAYER_COLUMNS], rows)
                self._write(event, {f"growth/lineage_{event['to_depth']}": table})
            case "stage":
                if event not in self._stages:  # else it is tried again
                    self._stages.append(event)
                rows = [[stage[column] for column in STAGE_COLUMNS] for stage in self._stages]
                self._write(event, {"stages/summary": wandb.Table([*STAGE_COLUMNS], rows)})
            case "similarity":
                self._write(event, {"similarity/layers": wandb.Image(similarity_picture(event))})

    def _write(self, event: Event, content: Mapping[str, Any]) -> None:
        self._logger.experiment.log({**content, _STEP: step_index(event)})


class TensorBoardEventLogger(EventLogger):
    """TensorBoard: pictures and tables.

    Args:
        logger: Lightning's.
    """

    def __init__(self, logger: TensorBoardLogger) -> None:
        self._logger = logger

    def log(self, event: Event) -> None:
        """Write tables and pictures."""
        writer, step = self._logger.experiment, step_index(event)
        match event["kind"]:
            case "growth":
                rows = [LAYER_COLUMNS, ["---"] * len(LAYER_COLUMNS)]
                rows += [[str(row[column]) for column in LAYER_COLUMNS] for row in event["layers"]]
                table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
                writer.add_text("growth/lineage", table, step)
            case "stage":
                lines = [f"- {column}: {event[column]}" for column in STAGE_COLUMNS]
                writer.add_text("stages/summary", "\n".join(lines), step)
            case "similarity":
                picture = np.asarray(similarity_picture(event))
                writer.add_image("similarity/layers", picture, step, dataformats="HWC")


_EDGE_COLOUR: Final = "#2fb7c4"
"""Visible on every shade of the map."""


def similarity_picture(event: Event) -> Image.Image:
    """Return `similarity_figure` as pixels."""
    buffer = io.BytesIO()
    similarity_figure(event).savefig(buffer, format="png", dpi=110)
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


def similarity_figure(event: Event) -> Figure:
    """Return maps of layers against each other and against the teacher's.

    Args:
        event: Of the kind ``similarity``.
    """
    names = event["layers"]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, values, columns in zip(
        figure.subplots(1, 2),
        (event["student"], event["teacher"]),
        (names, teacher_names(event["teacher_layers"])),
        strict=True,
    ):
        image = draw_map(axes, values, names, columns, lowest=float(np.min(values)))
        figure.colorbar(image, ax=axes, label="linear CKA", shrink=0.9)
        axes.set_ylabel("student's layer, by block and place")
    axes.set_xlabel("teacher's layer")
    return figure


def teacher_names(layers: Sequence[int]) -> list[str]:
    """Return the names of a teacher's hidden states, by their indices."""
    return ["input" if layer == 0 else str(layer) for layer in layers]


def draw_map(
    axes: Axes,
    values: ArrayLike,
    names: Sequence[str],
    columns: Sequence[str],
    *,
    lowest: float = 0.0,
    font_size: float = 7.0,
) -> AxesImage:
    """Draw a similarity map, with lines between the student's blocks.

    Args:
        axes: The axes.
        values: Similarities, (1 + layers, columns); the first row is the encoder's input.
        names: Of the student's layers, bottom first, as ``2.3``.
        columns: The same names, if they are the columns as well; else the teacher's.
        lowest: Similarity that is the darkest: layers are so alike that blocks would not show if
            that were 0.
        font_size: Of the layers' names.

    Returns:
        The image, for a colour bar.
    """
    image = axes.imshow(values, vmin=lowest, vmax=1, cmap="magma", origin="lower", aspect="auto")
    across = ["input", *names] if columns is names else columns
    axes.set_xticks(range(len(across)), across, rotation=90, fontsize=font_size)
    axes.set_yticks(range(len(names) + 1), ["input", *names], fontsize=font_size)
    for edge in _block_edges(names):
        axes.axhline(edge, color=_EDGE_COLOUR, linewidth=1.2)
        if columns is names:
            axes.axvline(edge, color=_EDGE_COLOUR, linewidth=1.2)
    return image


def _block_edges(names: Sequence[str]) -> list[float]:
    """Return where a layer of one block lies above another's, or above the input.

    In a stack that has not grown each layer is a block; lines around all of them would say nothing.
    """
    blocks = ["input", *(name.partition(".")[0] for name in names)]
    if len(set(blocks)) == len(blocks):
        return []
    return [layer - 0.5 for layer in range(1, len(blocks)) if blocks[layer] != blocks[layer - 1]]
