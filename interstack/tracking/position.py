"""Where a run stands: its stage, and how much of it is done."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import NamedTuple

import lightning as L

from interstack.growth.callback import InterleavedStacking, callbacks_of


class StageNumber(NamedTuple):
    """The number of a stage, counted from 1, and how many there are."""

    number: int
    total: int


class RunPosition(NamedTuple):
    """How much of a run is done; the total is None where nothing tells it beforehand."""

    done: int
    total: int | None
    unit: str


def growth_of(trainer: L.Trainer) -> InterleavedStacking | None:
    """Return the callback that grows the student, if there is one."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, InterleavedStacking):
            return callback
    return None


def stage_number(trainer: L.Trainer, depth: int) -> StageNumber:
    """Return which stage a student of this depth is in; a run that never grows has one."""
    growth = growth_of(trainer)
    depths = (depth,) if growth is None else growth.depths
    return StageNumber(max(1, bisect_right(depths, depth)), len(depths))


def share_left(trainer: L.Trainer, depth: int) -> tuple[float, float] | None:
    """Return the shares of the run that its stage and the whole of it still have to go.

    None where nothing tells the run's length beforehand.

    Args:
        trainer: In the midst of a fit.
        depth: The student's.
    """
    position = run_position(trainer)
    if not position.total:
        return None
    done = min(1.0, position.done / position.total)
    growth = growth_of(trainer)
    ends = [1.0]
    if growth is not None and growth.schedule is not None:
        stages = growth.schedule.stages
        ends = [stage.start for stage in stages[1:] if stage.depth > depth] + ends
    return max(0.0, ends[0] - done), 1.0 - done


def run_position(trainer: L.Trainer) -> RunPosition:
    """Return how much of the run is done: steps if these measure it, otherwise batches."""
    if trainer.max_steps > 0:
        return RunPosition(trainer.global_step, trainer.max_steps, "step")
    batches = trainer.num_training_batches * (trainer.max_epochs or -1)
    known = batches > 0 and math.isfinite(batches)
    done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
    return RunPosition(done, int(batches) if known else None, "batch")
