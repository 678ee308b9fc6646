"""Validation loss as a torchmetrics metric: exact over batches of any size and over ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from interstack.distillation.objective import ObjectiveConfig, TapSums, total_loss


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
        zeros = torch.zeros(num_taps, dtype=torch.float64)
        self.add_state("by_tap", zeros, dist_reduce_fx="sum")
        self.add_state("num_frames", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, sums: TapSums) -> None:
        """Add the sums of a batch."""
        # Not in place: `Trainer.validate` leaves inference tensors that `fit` can't write.
        self.by_tap = self.by_tap + sums.by_tap
        self.num_frames = self.num_frames + sums.num_frames

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the loss, (), and each tap's mean distance, (taps,)."""
        by_tap = (self.by_tap / self.num_frames.clamp(min=1)).float()
        return total_loss(by_tap, self.config), by_tap
