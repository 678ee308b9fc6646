"""The global batch: how the audio of an optimizer step is divided over any number of ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from interstack.constants import SAMPLE_RATE
from interstack.errors import ConfigurationError


@dataclass(frozen=True)
class BatchSplit:
    """The global batch of an optimizer step, divided into equal budgets.

    Attributes:
        global_seconds: Budget of the whole step, padding included.
        world_size: Ranks.
        micro_batches: Batches that each rank accumulates, one after the other.
    """

    global_seconds: float
    world_size: int
    micro_batches: int

    @property
    def seconds(self) -> float:
        """Budget of one batch of one rank, padding included."""
        return self.global_seconds / self.slots

    @property
    def slots(self) -> int:
        """Batches of an optimizer step, over all ranks."""
        return self.world_size * self.micro_batches

    @property
    def num_samples(self) -> int:
        """The same in samples, rounded down."""
        return int(self.seconds * SAMPLE_RATE)

    def __str__(self) -> str:
        return (
            f"{self.global_seconds:g} s = {self.world_size} × {self.micro_batches} × "
            f"{self.seconds:.4g} s (ranks × micro-batches × batch)"
        )

    def fault(self, name: str, longest_seconds: float) -> str:
        """Return the message where an utterance does not fit into one batch.

        Args:
            name: The longest utterance's.
            longest_seconds: Its length after cropping.
        """
        ranks = int(self.global_seconds / longest_seconds)
        fixes = ["raise data.global_batch_seconds", "lower data.max_seconds"]
        if ranks >= self.world_size:  # one batch a rank would do
            share = self.global_seconds / self.world_size
            fixes.insert(0, f"raise data.batch_seconds to {math.ceil(share * 10) / 10:g}")
        elif ranks:
            fixes.insert(0, f"use at most {ranks} devices")
        return (
            f"data.global_batch_seconds is {self.global_seconds:g}, which leaves "
            f"{self.seconds:.4g} s for each batch ({self.world_size} ranks × {self.micro_batches} "
            f"micro-batches), but {name} takes {longest_seconds:.4g} s: {', or '.join(fixes)}"
        )


def split_global_batch(global_seconds: float, most_seconds: float, world_size: int) -> BatchSplit:
    """Divide a global batch over ranks, and over as few micro-batches as their memory allows.

    Args:
        global_seconds: Audio of an optimizer step, padding included.
        most_seconds: Audio that one rank holds at once, padding included.
        world_size: Ranks.

    Example:
        >>> split_global_batch(787, 100, 1).micro_batches, split_global_batch(787, 100, 8).seconds
        (8, 98.375)
    """
    share = global_seconds / world_size
    return BatchSplit(global_seconds, world_size, max(1, math.ceil(share / most_seconds - 1e-9)))


def check_accumulation(trainer: L.Trainer, global_seconds: float | None) -> None:
    """Refuse two settings that both say how many batches are accumulated.

    Args:
        trainer: The run's, as it was made.
        global_seconds: ``data.global_batch_seconds``.

    Raises:
        ConfigurationError: If two of ``data.global_batch_seconds``,
            ``trainer.accumulate_grad_batches`` and GradientAccumulationScheduler are set.
    """
    callbacks: list[L.Callback] = vars(trainer).get("callbacks", [])
    schedules = any(isinstance(each, GradientAccumulationScheduler) for each in callbacks)
    number = trainer.accumulate_grad_batches
    if schedules and global_seconds is not None:
        raise ConfigurationError(
            "trainer.callbacks holds a GradientAccumulationScheduler, but "
            "data.global_batch_seconds works out how many batches are accumulated: remove one"
        )
    if number != 1 and global_seconds is not None:
        raise ConfigurationError(
            f"trainer.accumulate_grad_batches is {number}, but data.global_batch_seconds works it "
            "out for each number of devices: remove it, or remove data.global_batch_seconds"
        )
    if number != 1 and schedules:
        raise ConfigurationError(
            f"trainer.accumulate_grad_batches is {number}, but trainer.callbacks holds a "
            "GradientAccumulationScheduler, which sets it in every epoch: remove one"
        )


def set_up_accumulation(trainer: L.Trainer, split: BatchSplit, batches: int) -> None:
    """Make the Trainer accumulate as a split requires, and count its limits in global batches.

    ``limit_train_batches`` and ``val_check_interval`` are numbers of a rank's batches to Lightning;
    a recipe for any number of ranks can only mean global batches, which are optimizer steps.

    Args:
        trainer: The run's; changed in place, once.
        split: The split.
        batches: Of each rank in an epoch.

    Raises:
        ConfigurationError: If ``trainer.accumulate_grad_batches`` or Lightning's
            GradientAccumulationScheduler is set as well.
    """
    check_accumulation(trainer, split.global_seconds)
    trainer.accumulate_grad_batches = split.micro_batches
    steps = batches // split.micro_batches
    settings: dict[str, Any] = vars(trainer)
    for name in ("limit_train_batches", "val_check_interval"):
        value = _in_global_batches(name, settings.get(name), steps)
        if isinstance(value, int):
            settings[name] = value * split.micro_batches
            if name == "limit_train_batches":  # of which an interval is a fraction
                steps = min(steps, value)


def _in_global_batches(name: str, value: Any, steps: int) -> Any:  # noqa: ANN401, of either type
    """Return the number for a fraction of an epoch's global batches; others stay as they are.

    Raises:
        ConfigurationError: If that is less than one.
    """
    if not isinstance(value, float) or not 0.0 < value < 1.0:
        return value
    if value * steps < 1:
        raise ConfigurationError(
            f"trainer.{name} is {value:g}, which of an epoch's {steps} global batches is none: "
            "give a number, or a larger fraction"
        )
    return int(value * steps)
