"""How much of a run is done: the one clock that growth and the learning rate go by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from interstack.errors import ConfigurationError
from interstack.growth.schedule import LengthUnit

if TYPE_CHECKING:  # the schedule's record, which names a run's length, does without Lightning
    import lightning as L


class RunLength(NamedTuple):
    """The length of a run: so many of a unit."""

    total: float
    unit: LengthUnit


def run_length(trainer: L.Trainer) -> RunLength:
    """Read the run's length from the Trainer.

    Raises:
        ConfigurationError: If it has none, or two. ``fast_dev_run`` sets both, and counts steps.
    """
    if getattr(trainer, "fast_dev_run", False):
        return RunLength(int(vars(trainer)["fast_dev_run"]), "steps")
    has_steps = trainer.max_steps is not None and trainer.max_steps > 0
    has_epochs = trainer.max_epochs is not None and trainer.max_epochs > 0
    if has_steps and has_epochs:
        raise ConfigurationError(
            f"trainer.max_steps {trainer.max_steps} and trainer.max_epochs {trainer.max_epochs} "
            "both end the run: give one, since the growth schedule needs to know its length"
        )
    if has_steps:
        return RunLength(trainer.max_steps, "steps")
    if has_epochs:
        return RunLength(float(trainer.max_epochs or 0), "epochs")
    raise ConfigurationError(
        "the run has no end: give trainer.max_steps or trainer.max_epochs, since stages are shares "
        "of it"
    )


def run_progress(trainer: L.Trainer) -> float:
    """Return the share of the run that is done, 0 to 1, at the start of an optimizer step.

    All batches that are accumulated for a step have the progress of its first one.

    Raises:
        ConfigurationError: If the run is measured in epochs whose length is not known.
    """
    total, unit = run_length(trainer)
    if unit == "steps":
        return trainer.global_step / total
    batches = trainer.num_training_batches
    if math.isinf(batches):
        raise ConfigurationError(
            "trainer.max_epochs measures the run, but the data has no known number of batches: "
            "give trainer.max_steps instead"
        )
    batch = max(0, trainer.fit_loop.epoch_loop.batch_idx)
    batch -= batch % trainer.accumulate_grad_batches
    return (trainer.current_epoch + batch / batches) / total


def accumulated_batches(trainer: L.Trainer, epoch: int) -> int:
    """Return the batches whose gradients are accumulated for a step of an epoch."""
    from lightning.pytorch.callbacks import GradientAccumulationScheduler

    callbacks: list[L.Callback] = vars(trainer).get("callbacks", [])
    for callback in callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches
