"""What is recorded of a stage, and the file that it is kept in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from interstack.checkpointing.deferred import write_or_defer

RunStatus = Literal["running", "finished", "ended_early", "interrupted"]

RECORD_NAME = "stages.json"
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
        validation_loss_before: Just after growth, or at the run's start; None without validation.
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
    """Where a run has ended before its schedule did, by ``trainer.max_time`` or a callback.

    Attributes:
        stage: Number of the stage, counted from 1.
        stages: How many there were to be.
        depth: Encoder layers of the student.
        final_depth: Those of the last stage.
        done: Optimizer steps of the run, or its epochs that are over.
        total: How many there were to be.
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
        """Write where it was."""
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
        status: How the run stands.
        early_end: Where it has ended, if that was early.
    """
    record: dict[str, object] = {"status": status, "stages": [asdict(stage) for stage in stages]}
    if early_end is not None:
        record["early_end"] = asdict(early_end)
    write_or_defer(directory / RECORD_NAME, (json.dumps(record, indent=2) + "\n").encode())
