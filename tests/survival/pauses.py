"""Callbacks that bring a run to a stand, or into trouble, at a given point."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import lightning as L

from interstack.checkpointing import writer
from tests.checkpointing.full_disks import NoSpace


class PauseAt(L.Callback):
    """Makes a file and waits until it is removed, so that a test can do something meanwhile.

    Args:
        step: Optimizer steps that are done.
        where: ``step``: with gradients, before the weights change; ``before_growth`` and
            ``after_growth``: around it, the new optimizer in place; ``checkpoint``: in the midst of
            writing one; ``validation``: at the end of one; ``epoch``: at the end of one.
        flag: The file.
    """

    def __init__(self, step: int, where: str, flag: str) -> None:
        self.step = step
        self.where = where
        self.flag = flag
        self._has_paused = False

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: object) -> None:
        """Within a step."""
        self._pause(trainer, "step")

    def on_growth_start(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        """Before a growth."""
        self._pause(trainer, "before_growth")

    def on_growth_end(self, trainer: L.Trainer, _: L.LightningModule, _plan: object) -> None:
        """After a growth."""
        self._pause(trainer, "after_growth")

    def on_save_checkpoint(
        self, trainer: L.Trainer, _: L.LightningModule, _checkpoint: dict[str, Any]
    ) -> None:
        """In the midst of a checkpoint."""
        self._pause(trainer, "checkpoint")

    def on_validation_end(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        """At the end of a validation, which is that of an epoch."""
        self._pause(trainer, "validation")

    def on_train_epoch_end(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        """At the end of an epoch."""
        self._pause(trainer, "epoch")

    def _pause(self, trainer: L.Trainer, where: str) -> None:
        if where == self.where and trainer.global_step == self.step and not self._has_paused:
            self._has_paused = True  # a step may have several checkpoints
            flag = Path(self.flag)
            flag.touch()
            while flag.exists():
                time.sleep(0.02)


class FullDisk(L.Callback):
    """Lets no file grow beyond a size, as a full disk does, for some of the steps.

    Args:
        first: Optimizer steps that are done when the disk gets full.
        last: And when there is room again.
        size: In bytes.
    """

    def __init__(self, first: int, last: int, size: int = 50_000) -> None:
        self.first = first
        self.last = last
        self.size = size

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        """Set the limit, or lift it."""
        is_full = self.first <= trainer.global_step < self.last
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        limit = self.size if is_full else hard
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))


class NoSpaceLeft(L.Callback):
    """Lets the disk of a run be full, for files of every size, for some of its steps.

    Args:
        directory: The run's.
        first: Optimizer steps that are done when the disk gets full.
        last: And when there is space again; never if None.
        pattern: Of the files that are refused.
        from_fit_end: Let it get full only when training is over and saved.
    """

    def __init__(
        self,
        directory: str,
        first: int = 0,
        last: int | None = None,
        pattern: str = "*",
        from_fit_end: bool = False,
    ) -> None:
        self.first = first
        self.last = last
        self.from_fit_end = from_fit_end
        self._disk = NoSpace(Path(directory), pattern)
        self._is_full = False
        writer.PAUSE_SECONDS = 0.01

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        """Fill the disk, or free it."""
        done = trainer.global_step
        self._fill(not self.from_fit_end and self.first <= done < (self.last or done + 1))

    def on_fit_end(self, *_: object) -> None:
        """Fill it late."""
        self._fill(self._is_full or self.from_fit_end)

    def _fill(self, full: bool) -> None:
        if full != self._is_full:
            if full:
                self._disk.__enter__()
            else:
                self._disk.__exit__()
            self._is_full = full
