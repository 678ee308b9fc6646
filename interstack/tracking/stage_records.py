"""``stages.json``, the record of a run's stages, and the table that closes the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from interstack.utils.disk import write_or_defer
from interstack.utils.units import format_duration

RunStatus = Literal["running", "finished", "ended_early", "interrupted"]

RECORD_NAME: Final = "stages.json"
"""File in the run's directory: ``status``; ``stages``, a list of ``StageRecord``'s fields; and for
a run that has ended early ``early_end``, the fields of an ``EarlyEnd``."""


@dataclass
class StageRecord:
    """One stage of a run, as far as it has gone.

    Attributes:
        stage: Number of the stage, counted from 1.
        depth: Encoder layers of the student.
        num_parameters: Parameters of the student, without distillation heads.
        first_step: Optimizer steps of the run before this stage.
        steps: Optimizer steps of this stage.
        audio_seconds: Audio trained on, padding excluded, on all ranks.
        training_seconds: Wall-clock of training, growth included and validation excluded.
        validation_loss_before: Just after growing, or at the run's start; None without validation.
        validation_loss_after: At the stage's end; None before that.
        finished: Whether the stage has come to its end.
        padded_seconds: As `audio_seconds`, with the padding.
    """

    stage: int
    depth: int
    num_parameters: int
    first_step: int
    steps: int = 0
    audio_seconds: float = 0.0
    training_seconds: float = 0.0
    validation_loss_before: float | None = None
    validation_loss_after: float | None = None
    finished: bool = False
    padded_seconds: float = 0.0


@dataclass(frozen=True)
class EarlyEnd:
    """The point at which a run ended before its schedule did.

    Attributes:
        stage: Number of the stage, counted from 1.
        stages: Stages that were planned.
        depth: Encoder layers of the student.
        final_depth: Those of the last stage.
        done: Optimizer steps or epochs that are done.
        total: Steps or epochs that were planned.
        unit: ``step`` or ``epoch``.
    """

    stage: int
    stages: int
    depth: int
    final_depth: int
    done: int
    total: int
    unit: str

    def __str__(self) -> str:
        return (
            f"in stage {self.stage} of {self.stages}, at depth {self.depth} of {self.final_depth}, "
            f"after {self.unit} {self.done:,} of {self.total:,}"
        )


def write_stages(
    directory: Path,
    stages: Sequence[StageRecord],
    status: RunStatus,
    early_end: EarlyEnd | None = None,
) -> None:
    """Write the record of a run atomically; where the disk is full it is kept and written later.

    Args:
        directory: The run's directory, made if it is not there.
        stages: The stages so far.
        status: Of the run.
        early_end: Its end, if that was early.
    """
    record: dict[str, object] = {"status": status, "stages": [asdict(stage) for stage in stages]}
    if early_end is not None:
        record["early_end"] = asdict(early_end)
    write_or_defer(directory / RECORD_NAME, (json.dumps(record, indent=2) + "\n").encode())


_HEADERS: Final = (
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
    """Return a table of a run's stages, one a row, and their sums."""
    table = Table(
        box=SIMPLE_HEAD, show_footer=len(stages) > 1, collapse_padding=True, pad_edge=False
    )
    total = (
        "all",
        "",
        "",
        f"{sum(stage.steps for stage in stages):,}",
        _hours(sum(stage.audio_seconds for stage in stages)),
        format_duration(sum(stage.training_seconds for stage in stages)),
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
            format_duration(stage.training_seconds),
            _loss(stage.validation_loss_before),
            _loss(stage.validation_loss_after),
        )
    return table


def print_stage_table(stages: Sequence[StageRecord], directory: Path | None) -> None:
    """Print the table, and the run's directory; None for a trial that keeps nothing."""
    console = Console(highlight=False)
    console.print(stage_table(stages))
    end = "fast_dev_run: nothing is kept" if directory is None else f"The run is in {directory}"
    console.print(end, soft_wrap=True, markup=False)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f}"


def _loss(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4f}"
