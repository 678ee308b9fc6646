"""The training loss over ranks: one small collective a batch, and the same numbers everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor

from interstack.distillation.objective import ObjectiveConfig, TapSums, total_loss


class RankLoss(NamedTuple):
    """A batch's loss over the valid frames of all ranks, as each rank has it.

    Attributes:
        to_minimise: What this rank differentiates, (). DDP averages gradients over ranks, and the
            mean of this over ranks is ``loss``.
        loss: The mean over the frames of all ranks, detached and equal on all of them, ().
        by_tap: The same of each tap's distance, (taps,).
    """

    to_minimise: Tensor
    loss: Tensor
    by_tap: Tensor


def rank_loss(sums: TapSums, config: ObjectiveConfig, world_size: int) -> RankLoss:
    """Average a batch's sums over all ranks' frames, which are rarely equally many.

    Where the loss of any rank is not finite, ``loss`` is not finite on any rank, so that all of
    them can decide alike without asking one another.

    Args:
        sums: This rank's sums.
        config: The objective.
        world_size: Number of ranks; every one of them has to call this.
    """
    total, num_frames = sum_over_ranks((sums.by_tap, sums.num_frames), world_size)
    frames = num_frames.clamp(min=1)
    by_tap = (total / frames).float()
    mine = sums.by_tap / (frames / world_size).float()
    return RankLoss(total_loss(mine, config), total_loss(by_tap, config), by_tap)


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
