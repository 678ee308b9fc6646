"""What is recorded of a stage, and the file that it is kept in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from interstack.checkpointing.deferred import write_or_defer

RunStatus = Literal["running", "finished", "interrupted"]

RECORD_NAME = "stages.json"
"""File in the run's directory: ``status``, and ``stages``, a list of ``StageRecord``'s fields."""


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


def write_stages(directory: Path, stages: Sequence[StageRecord], status: RunStatus) -> None:
    """Write the record of a run atomically; where the disk is full it is kept and written later.

    Args:
        directory: The run's directory, made if it is not there.
        stages: The stages so far.
        status: How the run stands.
    """
    record = {"status": status, "stages": [asdict(stage) for stage in stages]}
    write_or_defer(directory / RECORD_NAME, (json.dumps(record, indent=2) + "\n").encode())
