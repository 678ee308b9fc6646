"""What growing cost a run and what it saved, in a glance."""

from __future__ import annotations

import math
from dataclasses import dataclass

from interstack.report.story import Story
from interstack.tracking.points import WALL_CLOCK

_HOUR = 3600.0


@dataclass(frozen=True)
class GrowthCost:
    """What a growth did to the validation loss.

    Attributes:
        depth: Layers that it made.
        jump: Relative rise of the validation loss; None where nothing was validated.
        recovered_after: Steps until the training loss was back; None if it is not.
    """

    depth: int
    jump: float | None
    recovered_after: int | None


@dataclass(frozen=True)
class Saving:
    """What the same steps would have taken at the deepest stage's pace: an estimate from the run.

    A measured speed-up is against a run at full depth; see `interstack.report.comparison`.

    Attributes:
        depth: Layers of the deepest stage so far.
        steps: Optimizer steps of the run.
        seconds: Of training that they took.
        full_depth_seconds: That they would have taken.
    """

    depth: int
    steps: int
    seconds: float
    full_depth_seconds: float

    @property
    def speed_up(self) -> float:
        """How many times faster the run was."""
        return self.full_depth_seconds / self.seconds


def growth_costs(story: Story) -> list[GrowthCost]:
    """Return what each growth of a run cost, in order."""
    costs = []
    ends = [*(growth["step"] for growth in story.growths), math.inf][1:]
    for growth, end in zip(story.growths, ends, strict=True):
        before, after = growth["validation_before"], growth["validation_after"]
        jump = None if not before or after is None else after / before - 1
        back = [
            recovery["after_steps"]
            for recovery in story.recoveries
            if growth["step"] < recovery["step"] <= end
        ]
        costs.append(GrowthCost(growth["to_depth"], jump, back[0] if back else None))
    return costs


def saving(story: Story) -> Saving | None:
    """Return what growing has saved so far; None for a run that has not grown, or just now."""
    if not story.growths:
        return None
    depth = max(int(growth["to_depth"]) for growth in story.growths)
    deepest = [point for point in story.points if int(point["train/depth"]) == depth]
    if len(deepest) < 2:
        return None
    first, last = deepest[0], deepest[-1]
    pace = _HOUR * (last[WALL_CLOCK] - first[WALL_CLOCK]) / (last["step"] - first["step"])
    return Saving(depth, last["step"], _HOUR * last[WALL_CLOCK], pace * last["step"])
