"""Runs side by side: seeds of one recipe together, and how soon each reaches a loss."""

from __future__ import annotations

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
    """When a group reaches the loss that all of them reach.

    Attributes:
        group: The group.
        seconds: Of training until then, one a run.
        speed_up: The full-depth runs' mean over this group's; None without such runs.
    """

    group: Group
    seconds: tuple[float, ...]
    speed_up: float | None


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

    Between two validations the loss is taken to fall in a straight line.
    """
    seconds = [tuple(_seconds_to(story, loss) for story in group.stories) for group in groups]
    full = [
        each
        for group, of_group in zip(groups, seconds, strict=True)
        if not group.stories[0].grows
        for each in of_group
    ]
    reference = sum(full) / len(full) if full else None
    return [
        Reached(
            group,
            of_group,
            None if reference is None else reference / (sum(of_group) / len(of_group)),
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
    return float("inf")
