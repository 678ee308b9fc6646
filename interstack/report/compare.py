"""Runs side by side: seeds of one recipe together, and how soon each reaches a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from interstack.report.run import Run
from interstack.tracking.metrics import WALL_CLOCK

_HOUR = 3600.0


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seeds alone.

    Attributes:
        name: Of the group: the run's, or the first one's with the number of seeds.
        runs: The runs.
    """

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class TimeToLoss:
    """How long a group trains until it reaches a loss.

    Attributes:
        group: The group.
        seconds: Of training until then, one a run; infinite for a run that has not reached it.
        speedups: Mean of the runs at full depth over each of them; none without such runs, or where
            one of them has not reached the loss.
    """

    group: Group
    seconds: tuple[float, ...]
    speedups: tuple[float, ...]


def group_by_recipe(runs: Sequence[Run]) -> list[Group]:
    """Return runs of one recipe together, in the order in which they are given."""
    recipes: dict[str, list[Run]] = {}
    for run in runs:
        key = run.recipe if run.seed is not None else run.name
        recipes.setdefault(key, []).append(run)
    return [
        Group(
            members[0].name if len(members) == 1 else f"{members[0].name} ({len(members)} seeds)",
            tuple(members),
        )
        for members in recipes.values()
    ]


def common_loss(groups: Sequence[Group]) -> float | None:
    """Return the lowest validation loss that every run reaches; None if one has none."""
    best = []
    for group in groups:
        for run in group.runs:
            losses = [loss for _, loss in run.losses()]
            if not losses:
                return None
            best.append(min(losses))
    return max(best) if best else None


def times_to_loss(groups: Sequence[Group], loss: float) -> list[TimeToLoss]:
    """Return how long each group trains until its validation loss is at most this.

    Between two validations the loss is taken to fall in a straight line. Speed-ups are against the
    runs that have the most layers of all from the beginning on.
    """
    seconds = [tuple(_seconds_to(run, loss) for run in group.runs) for group in groups]
    full_depth = max(run.final_depth for group in groups for run in group.runs)
    full = [
        each
        for group, of_group in zip(groups, seconds, strict=True)
        for run, each in zip(group.runs, of_group, strict=True)
        if not run.grows and run.final_depth == full_depth
    ]
    reference = sum(full) / len(full) if full else math.inf
    return [
        TimeToLoss(
            group,
            of_group,
            tuple(reference / each for each in of_group)
            if math.isfinite(reference + sum(of_group))
            else (),
        )
        for group, of_group in zip(groups, seconds, strict=True)
    ]


def _seconds_to(run: Run, loss: float) -> float:
    before: tuple[float, float] | None = None
    for event, found in run.losses():
        at = _HOUR * float(event[WALL_CLOCK])
        if found <= loss:
            if before is None or before[1] <= found:
                return at
            return before[0] + (at - before[0]) * (before[1] - loss) / (before[1] - found)
        before = (at, found)
    return math.inf


@dataclass(frozen=True)
class GrowthCost:
    """What a growth step did to the losses.

    Attributes:
        depth: Layers after it.
        jump: Relative rise of the validation loss; None where nothing was validated.
        recovered_after: Steps until the training loss was back; None if it is not.
    """

    depth: int
    jump: float | None
    recovered_after: int | None


@dataclass(frozen=True)
class SpeedupEstimate:
    """How long the same steps would have taken at the pace of the deepest stage.

    It is an estimate from the run alone; `times_to_loss` compares with a run at full depth.

    Attributes:
        depth: Layers of the deepest stage so far.
        steps: Optimizer steps of the run.
        seconds: Of training.
        full_depth_seconds: Of training, if all steps had the pace of the deepest stage.
    """

    depth: int
    steps: int
    seconds: float
    full_depth_seconds: float

    @property
    def speedup(self) -> float:
        """How many times faster the run was."""
        return self.full_depth_seconds / self.seconds


def growth_costs(run: Run) -> list[GrowthCost]:
    """Return what each growth step of a run did to the losses, in order."""
    costs = []
    ends = [*(growth["step"] for growth in run.growths), math.inf][1:]
    for growth, end in zip(run.growths, ends, strict=True):
        before, after = growth["validation_before"], growth["validation_after"]
        jump = None if not before or after is None else after / before - 1
        back = [
            recovery["after_steps"]
            for recovery in run.recoveries
            if growth["step"] < recovery["step"] <= end
        ]
        costs.append(GrowthCost(growth["to_depth"], jump, back[0] if back else None))
    return costs


def estimate_speedup(run: Run) -> SpeedupEstimate | None:
    """Return the speedup of growing so far; None for a run that has not grown, or just now."""
    if not run.growths:
        return None
    depth = max(int(growth["to_depth"]) for growth in run.growths)
    deepest = [point for point in run.points if int(point["train/depth"]) == depth]
    if len(deepest) < 2:
        return None
    first, last = deepest[0], deepest[-1]
    pace = _HOUR * (last[WALL_CLOCK] - first[WALL_CLOCK]) / (last["step"] - first["step"])
    return SpeedupEstimate(depth, last["step"], _HOUR * last[WALL_CLOCK], pace * last["step"])
