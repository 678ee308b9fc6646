"""Training batches whose loss nobody has looked at yet, since looking waits for the device.

Where the device computes behind the processor's back, as a GPU does, the processor prepares the
next steps meanwhile; asking at each step whether its loss is finite would make it wait for the
device, and then the device for it. So the answers stay on the device, and an update that must not
be is held back there too, until somebody looks.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from interstack.data.batch import Batch

MOST_PENDING: Final = 32
"""Batches that wait for a look at most; all of them are kept till then."""


class PendingBatch(NamedTuple):
    """A batch that was trained on unless its loss was not finite.

    Attributes:
        step: The optimizer step that it went into.
        batch: The batch.
        is_bad: Whether the loss over all ranks, and that over this rank's part, was not finite,
            (2,) float32 on the device, 1 for yes.
    """

    step: int
    batch: Batch
    is_bad: Tensor


class PendingBatches:
    """Holds the updates back from the first bad batch on, and finds that batch when it is asked."""

    def __init__(self) -> None:
        self._batches: list[PendingBatch] = []
        self._any_bad: Tensor | None = None

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, step: int, batch: Batch, loss: Tensor, mine: Tensor) -> None:
        """Note a batch, without waiting for the device.

        Args:
            step: The optimizer step that it goes into.
            batch: The batch.
            loss: The loss over all ranks' parts, ().
            mine: The sums over this rank's part, of any shape.
        """
        is_bad = torch.stack([~torch.isfinite(loss), ~torch.isfinite(mine).all()]).float()
        self._batches.append(PendingBatch(step, batch, is_bad))
        earlier = self._any_bad
        # Once bad, always bad: weights and moments stay those that the bad batch was met with.
        self._any_bad = is_bad[0] if earlier is None else torch.maximum(earlier, is_bad[0])

    def hold_back(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the step that comes change nothing if a batch was bad; a fused optimizer obeys."""
        fused: Any = optimizer
        fused.found_inf = self._any_bad

    def take_first_bad(self) -> tuple[PendingBatch, bool] | None:
        """Forget all batches, and return the first bad one; waits for the device.

        Returns:
            The batch, and whether this rank's part of it is bad itself; None if none is.
        """
        batches, self._batches, self._any_bad = self._batches, [], None
        if not batches:
            return None
        for each, (bad, mine_bad) in zip(
            batches, torch.stack([each.is_bad for each in batches]).tolist(), strict=True
        ):
            if bad:
                return each, bool(mine_bad)
        return None
