"""The targets' channel statistics, measured on the first seconds of all ranks' training data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor

from interstack.data.batch import Batch
from interstack.distillation.finite import BatchLoss, NumberFormats
from interstack.distillation.non_finite import ANOTHER_RANK, NonFinitePolicy
from interstack.distillation.objective import TapSums
from interstack.distillation.reduction import sum_over_ranks
from interstack.distillation.targets import channel_sums
from interstack.errors import DataError
from interstack.models.student import StudentOutput

_log = logging.getLogger(__name__)


@torch.no_grad()
def measure_channels(
    trainer: L.Trainer,
    ask: Callable[[Batch], tuple[StudentOutput, tuple[Tensor, ...]]],
    seconds: float,
    policy: NonFinitePolicy,
    formats: NumberFormats,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Sum the targets' channels over the first batches, as one process would over all ranks'.

    Args:
        trainer: A Trainer that is about to fit; every rank has to call this.
        ask: Gives the student's output and the targets as the teacher has them.
        seconds: Seconds of audio to measure on, all ranks together.
        policy: Whether targets that are not finite stop the run, or are left out.
        formats: What they are computed with.

    Returns:
        What ``TargetNorm.measure`` takes: the sums of each batch, equal on all ranks.

    Raises:
        DataError: If a target is not finite and the policy is ``stop``, or nothing is left.
    """
    measured = []
    heard = 0.0
    for number, batch in enumerate(_training_batches(trainer)):
        output, targets = ask(batch)
        mine = channel_sums(targets, output.mask)
        total, squares, frames, length = sum_over_ranks((*mine, batch.seconds), trainer.world_size)
        if bool(torch.isfinite(squares).all()):
            measured.append((total, squares, frames))
        else:
            part = BatchLoss(TapSums(mine[1], mine[2]), targets, output, batch, formats)
            here = f"training batch {number}, for the targets' channel statistics"
            fault = f"{here}: {ANOTHER_RANK}" if part.is_finite else part.fault(here)
            if policy == "stop":
                raise DataError(fault)
            _log.warning("%s; the batch is left out", fault)
        heard += float(length)
        if heard >= seconds:
            break
    if not measured:
        raise DataError(
            f"no training batch of the first {seconds:g} s has finite targets to measure channels "
            "on: try another teacher or model.teacher.dtype float32"
        )
    return measured


def _training_batches(trainer: L.Trainer) -> Iterator[Batch]:
    """Load this rank's training batches onto its device."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    if datamodule is None:
        trainer.fit_loop.setup_data()  # otherwise loaders given to fit() come later
    source: Any = datamodule.train_dataloader() if datamodule else trainer.train_dataloader
    for batch in source:
        yield trainer.strategy.batch_to_device(batch)
