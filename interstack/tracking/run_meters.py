"""What a run counts from step to step, and reads from the device only now and then."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from interstack.data.batch import Batch
from interstack.distillation.module import Distillation
from interstack.tracking.compute import step_flops
from interstack.tracking.spike import SpikeMeter
from interstack.tracking.totals import Totals, TotalsMeter


class RunMeters:
    """Counts audio, time, arithmetic and losses; a resumed run goes on counting.

    Attributes:
        totals: Audio, time and arithmetic.
        spike: What the last growth did to the training loss.
    """

    def __init__(self) -> None:
        self.totals = TotalsMeter()
        self.spike = SpikeMeter()
        self._losses: list[Tensor] = []
        self._steps_since = 0

    def add_batch(self, batch: Batch, world_size: int) -> None:
        """Count a batch; every rank has to call it."""
        self.totals.add(batch, world_size)

    def add_step(self, loss: Tensor | None) -> None:
        """Count an optimizer step, and keep its loss, which stays on the device."""
        self._steps_since += 1
        if loss is not None:
            self._losses.append(loss)

    def read(self, module: Distillation) -> None:
        """Bring everything up to date; waits for the device."""
        self.totals.count_time()
        self.totals.read(step_flops(module, module.depth))
        losses, self._losses = self._losses, []
        for loss in torch.stack(losses).tolist() if losses else ():
            self.spike.add(loss)

    def take_since(self) -> tuple[Totals, int]:
        """Return what has come since the last call, and the optimizer steps that it took."""
        steps, self._steps_since = self._steps_since, 0
        return self.totals.take_since(), steps

    def state_dict(self) -> dict[str, Any]:
        """Return everything as primitives, as of the last reading."""
        return {
            "totals": self.totals.totals.state_dict(),
            "since": self.totals.since.state_dict(),
            "steps_since": self._steps_since,
            "spike": self.spike.state_dict(),
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Self:
        """Return the meters that a state is of."""
        meters = cls()
        sums = (Totals.of_state(state[name]) for name in ("totals", "since"))
        meters.totals = TotalsMeter(*sums)
        meters.spike = SpikeMeter.of_state(state["spike"])
        meters._steps_since = state["steps_since"]
        return meters
