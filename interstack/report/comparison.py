"""Runs side by side: seeds of one recipe together, and how soon each reaches a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from interstack.report.story import Story
from interstack.tracking.points import WALL_CLOCK

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
