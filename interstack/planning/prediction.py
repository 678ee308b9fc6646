"""From a measured step to a run's wall-clock: arithmetic alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import ceil
from typing import Any, NamedTuple


class StepSplit(NamedTuple):
    """Where the time of an optimizer step goes at some depth, in seconds.

    Attributes:
        data: Waiting for the batch, moving it to the device, and what the workers that decode the
            next ones take from the processor.
        front_end: Forward passes of all front ends: the teacher's, and the student's own if it has
            one.
        teacher: The teacher above its front end; with cached targets unpacking them.
        student_forward: The student above its front end, and the loss.
        backward: All of it.
        optimizer: Clipping and the update.
    """

    data: float
    front_end: float
    teacher: float
    student_forward: float
    backward: float
    optimizer: float

    @property
    def step(self) -> float:
        """The whole step."""
        return sum(self)


@dataclass(frozen=True)
class StagePlan:
    """A stage of the run.

    Attributes:
        depth: Encoder layers.
        steps: Optimizer steps.
        share: Share of the run's steps.
        seconds: Predicted training time, validations left out.
    """

    depth: int
    steps: int
    share: float
    seconds: float


@dataclass(frozen=True)
class Worth:
    """What a way of running costs, and what growth is worth in it.

    Attributes:
        seconds: Predicted training time of the run.
        full_depth_seconds: The same with the last stage's depth throughout.
    """

    seconds: float
    full_depth_seconds: float

    @property
    def growth(self) -> float:
        """How many times faster growing is."""
        return self.full_depth_seconds / self.seconds


@dataclass(frozen=True)
class Prediction:
    """What a run will take.

    Attributes:
        stages: Its stages.
        training_seconds: All of them, and the waits at the beginnings of epochs.
        validation_seconds: All validations.
        worth: The run as it is configured.
        ceiling: What growth would be worth if nothing but encoder layers took time.
        levers: The same with the front end shared, or targets cached; only what isn't so already.
    """

    stages: tuple[StagePlan, ...]
    training_seconds: float
    validation_seconds: float
    worth: Worth
    ceiling: float
    levers: Mapping[str, Worth]

    @property
    def wall_clock(self) -> float:
        """Seconds in all."""
        return self.training_seconds + self.validation_seconds

    def to_primitives(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        worths = {"as configured": self.worth, **self.levers}
        return {
            "stages": [asdict(stage) for stage in self.stages],
            "training_seconds": self.training_seconds,
            "validation_seconds": self.validation_seconds,
            "wall_clock_seconds": self.wall_clock,
            "growth_ceiling": self.ceiling,
            "worth": {
                name: asdict(worth) | {"growth": worth.growth} for name, worth in worths.items()
            },
        }


def predict(
    depths: Sequence[int],
    steps: Sequence[int],
    step_seconds: Mapping[int, float],
    savings: Mapping[str, float],
    *,
    waits_seconds: float = 0.0,
    validation_seconds: float = 0.0,
) -> Prediction:
    """Predict a run.

    Args:
        depths: Of the stages.
        steps: Optimizer steps of each.
        step_seconds: A step's seconds at each depth.
        savings: What a lever takes off every step, in seconds, by its name.
        waits_seconds: Spent at the beginnings of epochs in all.
        validation_seconds: Spent in validations in all.
    """
    total = sum(steps)
    stages = tuple(
        StagePlan(
            depth,
            number,
            number / total,
            number * (step_seconds[depth] + waits_seconds / total),
        )
        for depth, number in zip(depths, steps, strict=True)
    )

    def worth(saved: float) -> Worth:
        grown = sum(
            number * (step_seconds[depth] - saved)
            for depth, number in zip(depths, steps, strict=True)
        )
        full = total * (step_seconds[depths[-1]] - saved)
        return Worth(grown + waits_seconds, full + waits_seconds)

    return Prediction(
        stages,
        sum(stage.seconds for stage in stages),
        validation_seconds,
        worth(0.0),
        growth_ceiling(depths, steps),
        {name: worth(saved) for name, saved in savings.items()},
    )


def growth_ceiling(depths: Sequence[int], steps: Sequence[int]) -> float:
    """Return full depth over the mean depth: growth's worth if only encoder layers took time.

    The paper's: 1.60 for EQL over 3, 6, 9 and 12 layers, 1.33, 1.20 and 1.13 for PROP-1 to 3.
    """
    layers = sum(depth * number for depth, number in zip(depths, steps, strict=True))
    return depths[-1] * sum(steps) / layers


def share_steps(shares: Sequence[float], total: int) -> list[int]:
    """Share out a run's steps over its stages, as growth does: a stage begins at its first step.

    Args:
        shares: Of the stages; they sum to 1.
        total: Optimizer steps.
    """
    ends = [sum(shares[: stage + 1]) for stage in range(len(shares))]
    begins = [0, *(ceil(end * total - 1e-6) for end in ends[:-1]), total]
    return [later - earlier for earlier, later in pairwise(begins)]
