"""The wall-clock of a run from its measured steps: arithmetic alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from interstack.growth.schedule import GrowthSchedule, RunLength


class StageLength(NamedTuple):
    """The length of a stage.

    Attributes:
        steps: Optimizer steps.
        batches: Of each rank; more than the steps where they are accumulated.
    """

    steps: int
    batches: int


class StepSplit(NamedTuple):
    """The parts of an optimizer step of one batch at some depth, in seconds.

    Attributes:
        data: Waiting for the batch, moving it to the device, and the processor time that workers
            take for decoding the next ones.
        front_end: Forward passes of all front ends: the teacher's, and the student's own if it has
            one.
        teacher: The teacher above its front end.
        student_forward: The student above its front end, unpacking cached targets, and the loss.
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
        seconds: Predicted training time, without validations.
    """

    depth: int
    steps: int
    share: float
    seconds: float


@dataclass(frozen=True)
class Speedup:
    """What growing gains in one way of running.

    Attributes:
        seconds: Predicted training time of the run.
        full_depth_seconds: The same with the last stage's depth throughout.
    """

    seconds: float
    full_depth_seconds: float

    @property
    def speedup(self) -> float:
        """How many times faster growing is than full depth throughout."""
        return self.full_depth_seconds / self.seconds


@dataclass(frozen=True)
class Prediction:
    """The predicted times of a run.

    Attributes:
        stages: Its stages.
        training_seconds: All of them, and the waits at the beginnings of epochs.
        validation_seconds: All validations.
        configured: The run as it is configured.
        ceiling: The speedup of growing if nothing but encoder layers took time.
        alternatives: The same with the front end shared, or targets cached, if they are not yet.
    """

    stages: tuple[StagePlan, ...]
    training_seconds: float
    validation_seconds: float
    configured: Speedup
    ceiling: float
    alternatives: Mapping[str, Speedup]

    @property
    def wall_clock(self) -> float:
        """Seconds in all."""
        return self.training_seconds + self.validation_seconds

    @property
    def speedups(self) -> dict[str, Speedup]:
        """The run as it is configured, and the alternatives, by name."""
        return {"as configured": self.configured, **self.alternatives}

    def to_primitives(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        return {
            "stages": [asdict(stage) for stage in self.stages],
            "training_seconds": self.training_seconds,
            "validation_seconds": self.validation_seconds,
            "wall_clock_seconds": self.wall_clock,
            "speedup_ceiling": self.ceiling,
            "speedups": {
                name: asdict(each) | {"speedup": each.speedup}
                for name, each in self.speedups.items()
            },
        }


def predict(
    depths: Sequence[int],
    lengths: Sequence[StageLength],
    splits: Mapping[int, StepSplit],
    savings: Mapping[str, float],
    *,
    waits_seconds: float = 0.0,
    validation_seconds: float = 0.0,
) -> Prediction:
    """Predict a run.

    Args:
        depths: Of the stages.
        lengths: Of the stages.
        splits: The parts of a step of one batch at each depth.
        savings: Seconds of every batch that an alternative saves, by its name.
        waits_seconds: Of all waits at the beginnings of epochs.
        validation_seconds: Of all validations.
    """
    total = sum(length.steps for length in lengths)

    def seconds(length: StageLength, depth: int, saved: float = 0.0) -> float:
        split = splits[depth]
        each = split.step - split.optimizer - saved
        return length.batches * each + length.steps * split.optimizer

    stages = tuple(
        StagePlan(
            depth,
            length.steps,
            length.steps / total,
            seconds(length, depth) + waits_seconds * length.steps / total,
        )
        for depth, length in zip(depths, lengths, strict=True)
    )

    def speedup(saved: float) -> Speedup:
        grown = sum(map(seconds, lengths, depths, [saved] * len(depths)))
        full = sum(seconds(length, depths[-1], saved) for length in lengths)
        return Speedup(grown + waits_seconds, full + waits_seconds)

    return Prediction(
        stages,
        sum(stage.seconds for stage in stages),
        validation_seconds,
        speedup(0.0),
        speedup_ceiling(depths, [length.batches for length in lengths]),
        {name: speedup(saved) for name, saved in savings.items()},
    )


def speedup_ceiling(depths: Sequence[int], batches: Sequence[int]) -> float:
    """Return full depth over mean depth: the speedup of growing if only encoder layers took time.

    The paper has 1.60 for EQL over 3, 6, 9 and 12 layers, 1.33, 1.20 and 1.13 for PROP-1 to 3.
    """
    layers = sum(depth * number for depth, number in zip(depths, batches, strict=True))
    return depths[-1] * sum(batches) / layers


def measure_stages(
    schedule: GrowthSchedule, run: RunLength, batches: int, window: Callable[[int], int]
) -> list[StageLength]:
    """Return the length of each stage, whose depth is decided before each optimizer step.

    Args:
        schedule: The stages.
        run: How long the run is.
        batches: Of an epoch.
        window: Batches that are accumulated for a step, by epoch; an epoch's last step has the
            rest.

    Example:
        >>> from interstack.growth.schedule import make_schedule
        >>> stages = make_schedule((3, 6), (0.5, 0.5))
        >>> measure_stages(stages, RunLength(2, "epochs"), 4, lambda epoch: 2 if epoch else 1)
        [StageLength(steps=4, batches=4), StageLength(steps=2, batches=4)]
    """
    steps, batches_of = ([0] * len(schedule.stages) for _ in range(2))
    step = epoch = 0
    while (step if run.unit == "steps" else epoch) < run.total:
        size = window(epoch)
        for begin in range(0, batches, size):
            done = step if run.unit == "steps" else epoch + begin / batches
            if done >= run.total:
                break
            stage = schedule.stage_at(done / run.total)
            steps[stage] += 1
            batches_of[stage] += min(size, batches - begin)
            step += 1
        epoch += 1
    return list(map(StageLength, steps, batches_of))
