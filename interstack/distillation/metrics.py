"""Validation loss as a torchmetrics metric: exact over batches of any size and over ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

from interstack.distillation.nan_guard import ANOTHER_RANK
from interstack.distillation.objective import ObjectiveConfig, TapSums, total_loss
from interstack.errors import DataError


class DistillationLoss(Metric):
    """Mean distance of each tap over all valid frames, and the loss made of them.

    Args:
        config: The objective.
        num_taps: Taps of the student.
    """

    full_state_update = False
    by_tap: Tensor
    num_frames: Tensor

    def __init__(self, config: ObjectiveConfig, num_taps: int) -> None:
        super().__init__()
        self.config = config
        self._fault = ""
        zeros = torch.zeros(num_taps, dtype=torch.float64)
        self.add_state("by_tap", zeros, dist_reduce_fx="sum")
        self.add_state("num_frames", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, sums: TapSums, fault: Callable[[], str] | None = None) -> None:
        """Add the sums of a batch.

        Args:
            sums: The batch's sums.
            fault: Returns what is wrong with the batch; called only if its sums are not finite.

        Raises:
            DataError: If it is not finite. Among several ranks ``compute`` raises instead, where
                they meet: one that left alone would keep the others waiting.
        """
        # Not in place: `Trainer.validate` leaves inference tensors that `fit` can't write.
        self.by_tap = self.by_tap + sums.by_tap
        self.num_frames = self.num_frames + sums.num_frames
        if not self._fault and not bool(torch.isfinite(sums.by_tap).all()):
            self._fault = fault() if fault is not None else "a batch's loss is not finite"
            if not self.distributed_available_fn():
                raise DataError(self._fault)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the loss, (), and each tap's mean distance, (taps,).

        Raises:
            DataError: On every rank, if a batch of any of them was not finite.
        """
        by_tap = (self.by_tap / self.num_frames.clamp(min=1)).float()
        loss = total_loss(by_tap, self.config)
        if not bool(torch.isfinite(loss)):
            raise DataError(self._fault or ANOTHER_RANK)
        return loss, by_tap

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self._fault = ""
