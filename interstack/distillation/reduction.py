"""The training loss over ranks and accumulated batches: one small collective a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn

from interstack.distillation.objective import ObjectiveConfig, TapSums, total_loss


class RankLoss(NamedTuple):
    """A batch's loss over the valid frames of all ranks, as each rank has it.

    Attributes:
        to_minimise: What this rank differentiates, (). DDP averages gradients over ranks, and the
            mean of this over ranks is ``loss``, or a constant multiple of it where the sums were
            divided by another number of frames than the batch's own.
        loss: The mean over the frames of all ranks, detached and equal on all of them, ().
        by_tap: The same of each tap's distance, (taps,).
        totals: The sums over all ranks, detached.
    """

    to_minimise: Tensor
    loss: Tensor
    by_tap: Tensor
    totals: TapSums


def rank_loss(
    sums: TapSums, config: ObjectiveConfig, world_size: int, divisor: Tensor | None = None
) -> RankLoss:
    """Average a batch's sums over all ranks' frames, which are rarely equally many.

    Where the loss of any rank is not finite, ``loss`` is not finite on any rank, so that all of
    them can decide alike without asking one another.

    Args:
        sums: This rank's sums.
        config: The objective.
        world_size: Number of ranks; every one of them has to call this.
        divisor: Frames that ``to_minimise`` is divided by, (), equal on all ranks; None: the
            batch's own, of all ranks.
    """
    # One collective a batch: the loss and the number of frames travel together.
    total, num_frames = sum_over_ranks((sums.by_tap, sums.num_frames), world_size)
    frames = num_frames.clamp(min=1)
    by_tap = (total / frames).float()
    # DDP averages gradients over ranks: this takes its division by their number back.
    mine = sums.by_tap / ((frames if divisor is None else divisor) / world_size).float()
    totals = TapSums(total, num_frames)
    return RankLoss(total_loss(mine, config), total_loss(by_tap, config), by_tap, totals)


class AccumulationWindow:
    """The loss and gradient of an optimizer step over all frames of its accumulated batches.

    How many frames a window has is known only when its last batch is there (a batch may be
    skipped on the way), and each batch is differentiated before that. So all of a window's sums are
    divided by one number, the frames of its first batch, and the gradients are brought to the mean
    over the window's frames before the optimizer, or clipping, sees them. The objective is linear
    in the sums, so this is exact; all numbers stay on the device. A window of one batch needs
    nothing of it.
    """

    divisor: Tensor | None
    """Frames, (), that this window's sums are divided by; None before its first batch."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget a window that was not finished."""
        self.divisor = None
        self._totals: TapSums | None = None

    def open(self, loss: RankLoss) -> None:
        """Fix the divisor by the window's first batch, whether or not that batch counts."""
        if self.divisor is None:
            self.divisor = loss.totals.num_frames.clamp(min=1)

    def add(self, loss: RankLoss, config: ObjectiveConfig) -> tuple[Tensor, Tensor]:
        """Count a batch.

        Args:
            loss: The batch's.
            config: The objective.

        Returns:
            The mean loss, (), and that of each tap, (taps,), over the window's frames so far.
        """
        if self._totals is None:
            self._totals = loss.totals
            return loss.loss, loss.by_tap
        by_tap = self._totals.by_tap.double() + loss.totals.by_tap.double()
        self._totals = TapSums(by_tap, self._totals.num_frames + loss.totals.num_frames)
        mean = (by_tap / self._totals.num_frames.clamp(min=1)).float()
        return total_loss(mean, config), mean

    @torch.no_grad()
    def finish(self, parameters: Iterable[nn.Parameter], window: int) -> None:
        """Bring the gradients to the mean over the window's frames, and begin the next window.

        Args:
            parameters: The module's; their gradients are changed in place.
            window: What every batch's loss was divided by before it was differentiated:
                ``trainer.accumulate_grad_batches``, also where an epoch's last window has fewer.
        """
        divisor, totals = self.divisor, self._totals
        self.clear()
        if window == 1 or divisor is None or totals is None:
            return
        # Lightning has divided each batch's loss by the window, and we by the first batch's frames.
        factor = (window * divisor / totals.num_frames.clamp(min=1)).float()
        gradients = [each.grad for each in parameters if each.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)


def sum_over_ranks(tensors: Sequence[Tensor], world_size: int) -> tuple[Tensor, ...]:
    """Add up each tensor over all ranks in one collective, detached.

    In float64: finite float32 sums can't overflow on the way, and what rounding the number and
    order of the ranks leave lies far below a float32. A single process's tensors stay as they are.

    Args:
        tensors: This rank's, of any shapes; of the same ones on every rank.
        world_size: Number of ranks.
    """
    if world_size == 1:
        return tuple(tensor.detach() for tensor in tensors)
    packed = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    # not strategy.reduce, which begins with a barrier
    torch.distributed.all_reduce(packed)
    parts = torch.split(packed, [tensor.numel() for tensor in tensors])
    return tuple(part.reshape(like.shape) for part, like in zip(parts, tensors, strict=True))
