"""Runs side by side: seeds of one recipe together, and how soon each reaches a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from interstack.report.run import Story
from interstack.tracking.metrics import WALL_CLOCK

_HOUR = 3600.0


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seeds alone.

    Attributes:
        name: Of the group: the run's, or the first one's with the number of seeds.
        stories: The runs.
    """

    name: str
    stories: tuple[Story, ...]


@dataclass(frozen=True)
class Reached:
    """When a group reaches a loss.

    Attributes:
        group: The group.
        seconds: Of training until then, one a run; infinite for a run that has not reached it.
        speed_ups: The mean of the runs at full depth over each of them; none without such runs, or
            where one of them has not reached it.
    """

    group: Group
    seconds: tuple[float, ...]
    speed_ups: tuple[float, ...]


def group_by_recipe(stories: Sequence[Story]) -> list[Group]:
    """Put runs of one recipe together, in the order in which they were given."""
    recipes: dict[str, list[Story]] = {}
    for story in stories:
        key = story.recipe if story.seed is not None else story.name
        recipes.setdefault(key, []).append(story)
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
        for story in group.stories:
            losses = [loss for _, loss in story.losses()]
            if not losses:
                return None
            best.append(min(losses))
    return max(best) if best else None


def reach(groups: Sequence[Group], loss: float) -> list[Reached]:
    """Return how long each group trains until its validation loss is at most this.

    Between two validations the loss is taken to fall in a straight line. Speed-ups are against the
    runs that have the most layers of all from the beginning on.
    """
    seconds = [tuple(_seconds_to(story, loss) for story in group.stories) for group in groups]
    full_depth = max(story.final_depth for group in groups for story in group.stories)
    full = [
        each
        for group, of_group in zip(groups, seconds, strict=True)
        for story, each in zip(group.stories, of_group, strict=True)
        if not story.grows and story.final_depth == full_depth
    ]
    reference = sum(full) / len(full) if full else math.inf
    return [
        Reached(
            group,
            of_group,
            tuple(reference / each for each in of_group)
            if math.isfinite(reference + sum(of_group))
            else (),
        )
        for group, of_group in zip(groups, seconds, strict=True)
    ]


def _seconds_to(story: Story, loss: float) -> float:
    before: tuple[float, float] | None = None
    for event, found in story.losses():
        at = _HOUR * float(event[WALL_CLOCK])
        if found <= loss:
            if before is None or before[1] <= found:
                return at
            return before[0] + (at - before[0]) * (before[1] - loss) / (before[1] - found)
        before = (at, found)
    return math.inf


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

    A measured speed-up is against a run at full depth; see `interstack.report.compare`.

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
