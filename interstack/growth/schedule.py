"""When the student grows: the run's progress, its stages, and the schedule a checkpoint keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from interstack.errors import ConfigurationError
from interstack.growth.operators import OperatorName
from interstack.growth.optimizer_state import OptimizerStatePolicy

if TYPE_CHECKING:
    import lightning as L


class RunLength(NamedTuple):
    """The length of a run: so many of a unit."""

    total: float
    unit: LengthUnit


def run_length(trainer: L.Trainer) -> RunLength:
    """Read the run's length from the Trainer.

    Raises:
        ConfigurationError: If it has none, or two. ``fast_dev_run`` sets both, and counts steps.
    """
    if getattr(trainer, "fast_dev_run", False):
        return RunLength(int(vars(trainer)["fast_dev_run"]), "steps")
    has_steps = trainer.max_steps is not None and trainer.max_steps > 0
    has_epochs = trainer.max_epochs is not None and trainer.max_epochs > 0
    if has_steps and has_epochs:
        raise ConfigurationError(
            f"trainer.max_steps {trainer.max_steps} and trainer.max_epochs {trainer.max_epochs} "
            "both end the run: give one, since the growth schedule needs to know its length"
        )
    if has_steps:
        return RunLength(trainer.max_steps, "steps")
    if has_epochs:
        return RunLength(float(trainer.max_epochs or 0), "epochs")
    raise ConfigurationError(
        "the run has no end: give trainer.max_steps or trainer.max_epochs, since stages are shares "
        "of it"
    )


def run_progress(trainer: L.Trainer) -> float:
    """Return the share of the run that is done, 0 to 1, at the start of an optimizer step.

    All batches that are accumulated for a step have the progress of its first one.

    Raises:
        ConfigurationError: If the run is measured in epochs whose length is not known.
    """
    total, unit = run_length(trainer)
    if unit == "steps":
        return trainer.global_step / total
    batches = trainer.num_training_batches
    if math.isinf(batches):
        raise ConfigurationError(
            "trainer.max_epochs measures the run, but the data has no known number of batches: "
            "give trainer.max_steps instead"
        )
    batch = max(0, trainer.fit_loop.epoch_loop.batch_idx)
    batch -= batch % trainer.accumulate_grad_batches
    return (trainer.current_epoch + batch / batches) / total


def accumulated_batches(trainer: L.Trainer, epoch: int) -> int:
    """Return the batches whose gradients are accumulated for a step of an epoch."""
    from lightning.pytorch.callbacks import GradientAccumulationScheduler

    callbacks: list[L.Callback] = vars(trainer).get("callbacks", [])
    for callback in callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches


ScheduleKind = Literal["eql", "prop", "explicit"]
LengthUnit = Literal["epochs", "steps"]

_TOLERANCE = 1e-9  # progress is a quotient of counts; sums of shares may miss it by rounding


@dataclass(frozen=True)
class Stage:
    """A stretch of the run at one depth.

    Attributes:
        depth: Encoder layers of the student.
        start: Progress at which the stage begins.
        end: Progress at which it ends.
    """

    depth: int
    start: float
    end: float


@dataclass(frozen=True)
class GrowthSchedule:
    """The stages of a run, gapless from progress 0 to 1."""

    stages: tuple[Stage, ...]

    def stage_at(self, progress: float) -> int:
        """Return the index of the stage that a point of the run lies in.

        Args:
            progress: Share of the run that is done, 0 to 1. At 1 and past it the last stage holds.
        """
        begun = [stage.start <= progress + _TOLERANCE for stage in self.stages]
        return max(0, sum(begun) - 1)

    def depth_at(self, progress: float) -> int:
        """Return the depth due at a point of the run; see ``stage_at``."""
        return self.stages[self.stage_at(progress)].depth


def make_schedule(depths: Sequence[int], shares: Sequence[float] | None = None) -> GrowthSchedule:
    """Lay stages of the given depths and shares of the run one after another.

    Args:
        depths: Layers of every stage, strictly increasing.
        shares: Length of every stage as a share of the run; they sum to 1. By default equal ones.

    Raises:
        ConfigurationError: If depths do not increase, or shares do not fit them.

    Example:
        >>> schedule = make_schedule((3, 6, 9, 12))
        >>> [schedule.depth_at(step / 100) for step in (0, 24, 25, 99)]
        [3, 3, 6, 12]
    """
    check_depths(depths)
    if shares is None:
        shares = prop_shares(len(depths), 0.0)
    if len(shares) != len(depths):
        raise ConfigurationError(
            f"{len(depths)} stage depths {list(depths)} need {len(depths)} lengths, not "
            f"{len(shares)}: {list(shares)}"
        )
    if abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0:
        raise ConfigurationError(f"stage shares {list(shares)} have to be positive and sum to 1")
    ends = [sum(shares[: stage + 1]) for stage in range(len(shares))]
    ends[-1] = 1.0
    starts = [0.0, *ends[:-1]]
    return GrowthSchedule(
        tuple(
            Stage(depth, start, end) for depth, start, end in zip(depths, starts, ends, strict=True)
        )
    )


def prop_shares(num_stages: int, alpha: float) -> list[float]:
    """PROP-α: stage b of B takes a share proportional to b^α (arXiv 2606.11766).

    PROP-1 with four stages is 10, 20, 30 and 40 %; PROP-0 is EQL, equal shares.
    """
    weights = [(stage + 1) ** alpha for stage in range(num_stages)]
    return [weight / sum(weights) for weight in weights]


def explicit_shares(lengths: Sequence[float], total: float, unit: LengthUnit) -> list[float]:
    """Turn stage lengths, given in epochs or steps, into shares of the run.

    Args:
        lengths: Length of every stage; epochs may be fractions.
        total: Length of the whole run in the same unit.
        unit: What is counted, for the message.

    Raises:
        ConfigurationError: If a length is not positive, or the lengths do not sum to the run.
    """
    if not lengths or min(lengths) <= 0:
        raise ConfigurationError(f"growth.lengths {list(lengths)} have to be positive {unit}")
    if unit == "steps" and any(length != int(length) for length in lengths):
        raise ConfigurationError(f"growth.lengths {list(lengths)} have to be whole steps")
    if abs(sum(lengths) - total) > 1e-6 * total:
        raise ConfigurationError(
            f"growth.lengths {list(lengths)} sum to {sum(lengths):g} {unit}, but the run has "
            f"{total:g}: change the lengths or trainer.max_{unit}"
        )
    return [length / total for length in lengths]


def check_depths(depths: Sequence[int]) -> None:
    """Refuse depths that are missing, below 1 or not strictly increasing.

    Raises:
        ConfigurationError: In that case.
    """
    if not depths or depths[0] < 1:
        raise ConfigurationError(f"growth.depths {list(depths)} must begin with 1 layer or more")
    if any(above <= below for below, above in pairwise(depths)):
        raise ConfigurationError(
            f"growth.depths {list(depths)} have to increase from stage to stage"
        )


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


def check_unchanged(started: ScheduleRecord, resumed: ScheduleRecord) -> None:
    """Refuse to resume a run with another schedule than it was started with.

    Raises:
        ConfigurationError: With both, if they differ by more than rounding.
    """
    if not _agree(started, resumed):
        raise ConfigurationError(
            f"the run was started with this growth schedule\n{started}\nand is resumed with this "
            f"one\n{resumed}\nGive the settings that it was started with, which are in its "
            "config.yaml, or start a new run in another directory"
        )


def _agree(one: ScheduleRecord, other: ScheduleRecord) -> bool:
    """Return whether two schedules are the same; equal shares may have been summed differently."""
    if replace(one, stages=()) != replace(other, stages=()):
        return False
    return len(one.stages) == len(other.stages) and all(
        mine.depth == yours.depth and math.isclose(mine.end, yours.end, rel_tol=1e-9)
        for mine, yours in zip(one.stages, other.stages, strict=True)
    )


def _number(value: float) -> str:
    """Write a number of steps or epochs without needless zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
