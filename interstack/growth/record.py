"""The schedule that a run began with: kept in its checkpoints, and held against a resumed run's.

Depth and learning rate are functions of the run's progress. Resumed with another schedule, a run
would be neither the one that was begun nor the one that was asked for.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from interstack.errors import ConfigurationError
from interstack.growth.operators import OperatorName
from interstack.growth.optimizer_state import OptimizerStatePolicy
from interstack.growth.progress import RunLength
from interstack.growth.schedule import Stage

LearningRatePolicy = Literal["continue", "rewarm"]


@dataclass(frozen=True)
class ScheduleRecord:
    """All that growth does in a run.

    Attributes:
        run: The run's length.
        stages: The stages, as shares of it.
        operator: How the student grows.
        optimizer_state: What becomes of the optimizer's state.
        learning_rate: What becomes of the learning rate.
        rewarm_steps: Optimizer steps of ``rewarm``.
    """

    run: RunLength
    stages: tuple[Stage, ...]
    operator: OperatorName
    optimizer_state: OptimizerStatePolicy
    learning_rate: LearningRatePolicy
    rewarm_steps: int | None

    def to_primitives(self) -> dict[str, Any]:
        """Return the record as ``torch.load(weights_only=True)`` wants it."""
        stages = [asdict(stage) for stage in self.stages]
        return vars(self) | {"run": list(self.run), "stages": stages}

    @classmethod
    def from_primitives(cls, primitives: dict[str, Any]) -> ScheduleRecord:
        """Read what ``to_primitives`` made."""
        run = RunLength(*primitives["run"])
        stages = tuple(Stage(**stage) for stage in primitives["stages"])
        return cls(**primitives | {"run": run, "stages": stages})

    def __str__(self) -> str:
        """Write a line a stage, in the run's unit, and one for the rest."""
        total, unit = self.run
        ends = [_number(stage.end * total) for stage in self.stages]
        starts = ["0", *ends[:-1]]
        width = max(map(len, ends))
        lines = [
            f"stage {number}: {stage.depth:>3} layers, {start:>{width}} to {end:>{width}} {unit}"
            for number, (stage, start, end) in enumerate(
                zip(self.stages, starts, ends, strict=True), start=1
            )
        ]
        rewarm = f" over {self.rewarm_steps} steps" if self.rewarm_steps else ""
        rest = (
            f"operator {self.operator}, optimizer_state {self.optimizer_state}, "
            f"learning_rate {self.learning_rate}{rewarm}"
        )
        return "\n".join(f"    {line}" for line in [*lines, rest])


def check_unchanged(began: ScheduleRecord, resumed: ScheduleRecord) -> None:
    """Refuse to resume a run with another schedule than it began with.

    Raises:
        ConfigurationError: With both, if they differ by more than rounding.
    """
    if not _agree(began, resumed):
        raise ConfigurationError(
            f"the run began with this growth schedule\n{began}\nand is resumed with this one\n"
            f"{resumed}\nGive the settings that it began with, which are in its config.yaml, or "
            "begin a new run in another directory."
        )


def _agree(one: ScheduleRecord, other: ScheduleRecord) -> bool:
    """Tell whether two schedules are the same; equal shares may have been summed differently."""
    if replace(one, stages=()) != replace(other, stages=()):
        return False
    return len(one.stages) == len(other.stages) and all(
        mine.depth == yours.depth and math.isclose(mine.end, yours.end, rel_tol=1e-9)
        for mine, yours in zip(one.stages, other.stages, strict=True)
    )


def _number(value: float) -> str:
    """Write a number of steps or epochs without needless zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
