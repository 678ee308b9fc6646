"""What a run has done, and what its losses did at growths, as far as it was last looked at."""

from __future__ import annotations

from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from interstack.distillation.module import Distillation
from interstack.tracking.compute import optimizer_flops, step_flops
from interstack.tracking.spike import SpikeMeter
from interstack.tracking.stages import StageRecorder
from interstack.tracking.totals import Totals, totals_of


class RunMeters:
    """Reads from the device only when it is asked to; a resumed run goes on counting.

    Attributes:
        totals: Audio, time and arithmetic of the run, as of the last reading.
        spike: What the last growth did to the training loss, as of the last reading.
    """

    def __init__(self) -> None:
        self.totals = Totals()
        self.spike = SpikeMeter()
        self._losses: list[Tensor] = []
        self._taken = Totals()  # what `take_since` has returned, in all
        self._steps_since = 0

    def add_step(self, loss: Tensor | None) -> None:
        """Count an optimizer step, and keep its loss, which stays on the device."""
        self._steps_since += 1
        if loss is not None:
            self._losses.append(loss)

    def read(self, recorder: StageRecorder, module: Distillation) -> None:
        """Bring everything up to date; waits for the device."""
        recorder.read()
        self.totals = totals_of(
            recorder.stages, partial(step_flops, module), partial(optimizer_flops, module)
        )
        losses, self._losses = self._losses, []
        for loss in torch.stack(losses).tolist() if losses else ():
            self.spike.add(loss)

    def take_since(self) -> tuple[Totals, int]:
        """Return what has come since the last call, and the optimizer steps that it took."""
        since, self._taken = self.totals - self._taken, self.totals
        steps, self._steps_since = self._steps_since, 0
        return since, steps

    def state_dict(self) -> dict[str, Any]:
        """Return as primitives what the stages do not tell, as of the last reading."""
        return {
            "taken": self._taken.state_dict(),
            "steps_since": self._steps_since,
            "spike": self.spike.state_dict(),
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Self:
        """Return the meters that a state is of."""
        meters = cls()
        meters._taken = Totals.of_state(state.get("taken", {}))  # older checkpoints have none
        meters.spike = SpikeMeter.of_state(state["spike"])
        meters._steps_since = state["steps_since"]
        return meters
