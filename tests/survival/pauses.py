"""A callback that brings a run to a stand at a given point, so that a test can kill it there."""

from __future__ import annotations

import time
from pathlib import Path

import lightning as L


class PauseAt(L.Callback):
    """Makes a file and waits for ever.

    Args:
        step: Optimizer steps that are done.
        where: ``step``: with gradients, before the weights change; ``before_growth`` and
            ``after_growth``: around it, the new optimizer in place.
        flag: The file.
    """

    def __init__(self, step: int, where: str, flag: str) -> None:
        self.step = step
        self.where = where
        self.flag = flag

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: object) -> None:
        """Within a step."""
        self._pause(trainer, "step")

    def on_growth_start(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        """Before a growth."""
        self._pause(trainer, "before_growth")

    def on_growth_end(self, trainer: L.Trainer, _: L.LightningModule, _plan: object) -> None:
        """After a growth."""
        self._pause(trainer, "after_growth")

    def _pause(self, trainer: L.Trainer, where: str) -> None:
        if where == self.where and trainer.global_step == self.step:
            Path(self.flag).touch()
            time.sleep(600)
