"""Where a run is: its stage, and how much of it is done."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import NamedTuple

import lightning as L

from interstack.growth.callback import growth_of
from interstack.growth.schedule import Stage
from interstack.utils.progress import RunPosition


class StageNumber(NamedTuple):
    """The number of a stage, counted from 1, and how many there are."""

    number: int
    total: int


def stage_number(trainer: L.Trainer, depth: int) -> StageNumber:
    """Return which stage a student of this depth is in; a run that never grows has one."""
    growth = growth_of(trainer)
    depths = (depth,) if growth is None else growth.depths
    return StageNumber(max(1, bisect_right(depths, depth)), len(depths))


def stages_left(trainer: L.Trainer, depth: int) -> list[Stage]:
    """Return the stage that a student of this depth is in, and those that come after it."""
    growth = growth_of(trainer)
    if growth is None or growth.schedule is None:
        return [Stage(depth, 0.0, 1.0)]
    return [stage for stage in growth.schedule.stages if stage.depth >= depth]


def run_position(trainer: L.Trainer) -> RunPosition:
    """Return how much of the run is done: steps if these measure it, otherwise batches."""
    if trainer.max_steps > 0:
        return RunPosition(trainer.global_step, trainer.max_steps, "step")
    batches = trainer.num_training_batches * (trainer.max_epochs or -1)
    known = batches > 0 and math.isfinite(batches)
    done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
    return RunPosition(done, int(batches) if known else None, "batch")
