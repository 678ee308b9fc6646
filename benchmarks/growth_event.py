"""What a growth costs: the growth itself, a new optimizer, and a first step that is slower."""

from __future__ import annotations

from itertools import pairwise
from statistics import median
from typing import Final, NamedTuple

from benchmarks.materials import Materials
from benchmarks.steps import Step, timed
from benchmarks.variants import DEPTHS, Setting
from interstack.growth.operators import interleave, plan_growth

_STEPS_AFTER: Final = 2


class GrowthEvent(NamedTuple):
    """Growths from one depth to the next, one a repetition; all in seconds.

    Attributes:
        before: Layers before.
        after: Layers after.
        growing: Planning, cloning, and making a new optimizer.
        first_step: The step right after, in which the optimizer's state is made.
        steps: The median of some further steps.
    """

    before: int
    after: int
    growing: list[float]
    first_step: list[float]
    steps: list[float]


def measure_growth(materials: Materials, setting: Setting, repetitions: int) -> list[GrowthEvent]:
    """Grow a student through all stages, so many times.

    Args:
        materials: What its steps are made of.
        setting: How they are computed.
        repetitions: How often.
    """
    events = [GrowthEvent(*depths, [], [], []) for depths in pairwise(DEPTHS)]
    for _ in range(repetitions):
        module = materials.module(setting, DEPTHS[0])
        step = Step(materials, setting, module, module.configure_optimizers())
        step.take()
        for event in events:
            event.growing.append(timed(lambda: _grow(step, event.after), materials.device))  # noqa: B023, called at once
            event.first_step.append(step())
            event.steps.append(median(step() for _ in range(_STEPS_AFTER)))
    return events


def _grow(step: Step, depth: int) -> None:
    """Do what the growth callback does."""
    module = step.module
    module.grow(plan_growth(interleave, module.lineage, depth))
    step.optimizer = module.configure_optimizers()


def cost_in_steps(event: GrowthEvent) -> float:
    """Return what a growth costs, in steps at the depth after it: the median over repetitions.

    Counted are the growth and what the first step takes beyond a usual one.
    """
    return median(
        (growing + max(0.0, first - usual)) / usual
        for growing, first, usual in zip(event.growing, event.first_step, event.steps, strict=True)
    )
