"""The table that closes a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from interstack.tracking.record import StageRecord

_HEADERS = (
    "stage",
    "depth",
    "parameters",
    "steps",
    "hours of\naudio",
    "wall-clock",
    "validation\nloss before",
    "validation\nloss after",
)


def stage_table(stages: Sequence[StageRecord]) -> Table:
    """Lay out the stages of a run, one a row, and their sums."""
    table = Table(
        box=SIMPLE_HEAD, show_footer=len(stages) > 1, collapse_padding=True, pad_edge=False
    )
    total = (
        "all",
        "",
        "",
        f"{sum(stage.steps for stage in stages):,}",
        _hours(sum(stage.audio_seconds for stage in stages)),
        _clock_time(sum(stage.training_seconds for stage in stages)),
        "",
        "",
    )
    for header, footer in zip(_HEADERS, total, strict=True):
        # Too narrow a terminal folds figures, where ellipses would lose digits.
        table.add_column(header, footer, justify="right", overflow="fold", vertical="bottom")
    for stage in stages:
        table.add_row(
            str(stage.stage),
            str(stage.depth),
            f"{stage.num_parameters / 1e6:.2f} M",
            f"{stage.steps:,}",
            _hours(stage.audio_seconds),
            _clock_time(stage.training_seconds),
            _loss(stage.validation_loss_before),
            _loss(stage.validation_loss_after),
        )
    return table


def print_stage_table(stages: Sequence[StageRecord], directory: Path | None) -> None:
    """Print the table, and where the run's directory is; None for a trial that keeps nothing."""
    console = Console(highlight=False)
    console.print(stage_table(stages))
    end = "fast_dev_run: nothing is kept" if directory is None else f"The run is in {directory}"
    console.print(end, soft_wrap=True, markup=False)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f}"


def _clock_time(seconds: float) -> str:
    minutes, seconds_left = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds_left:02}"


def _loss(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4f}"
