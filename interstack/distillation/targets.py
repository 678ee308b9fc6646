"""From the teacher's hidden states to the student's targets: alignment in time, normalisation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from interstack.data.batch import Batch
from interstack.distillation.nan_guard import (
    ANOTHER_RANK,
    BatchLoss,
    NonFinitePolicy,
    NumberFormats,
)
from interstack.distillation.objective import ObjectiveConfig, TapSums, layer_normed
from interstack.distillation.reduction import sum_over_ranks
from interstack.errors import DataError
from interstack.models.student import StudentOutput


class FrameGrid(NamedTuple):
    """Where a model's frames lie in time.

    Attributes:
        first: Centre of the first frame, in samples.
        hop: Samples from one frame's centre to the next.
    """

    first: float
    hop: int


def align_frames(
    hidden_states: Sequence[Tensor],
    num_frames: Tensor,
    teacher: FrameGrid,
    student: FrameGrid,
    student_frames: int,
) -> tuple[Tensor, ...]:
    """Pick, for every student frame, the teacher frame whose centre is nearest in time.

    Teachers with another front end than the student's have frames of their own: Whisper's first
    one is centred on sample 0, a HuBERT's on sample 199.5.

    Args:
        hidden_states: The teacher's, each (batch, teacher frames, channels).
        num_frames: The teacher's valid frames of each utterance, (batch,).
        teacher: The teacher's frames in time.
        student: The student's frames in time.
        student_frames: Frames of the student's padded batch.

    Returns:
        The same tensors with the student's number of frames. Where an utterance's last frame has no
        counterpart, its last one stands in.
    """
    if teacher == student:
        return tuple(hidden_states)
    centres = student.first + student.hop * torch.arange(student_frames, device=num_frames.device)
    nearest = ((centres - teacher.first) / teacher.hop).round().long().clamp(min=0)
    index = nearest[None].minimum((num_frames - 1).clamp(min=0)[:, None])[..., None]
    return tuple(
        hidden.gather(1, index.expand(-1, -1, hidden.shape[-1])) for hidden in hidden_states
    )


class TargetNorm(nn.Module):
    """Normalises targets as the objective requires; channel statistics are part of the checkpoint.

    Args:
        config: The objective.
        num_taps: Taps, each with statistics of its own.
        width: Channels of the targets.
    """

    mean: Tensor
    std: Tensor
    measured: Tensor

    def __init__(self, config: ObjectiveConfig, num_taps: int, width: int) -> None:
        super().__init__()
        self.config = config
        if config.target_norm == "channel":
            self.register_buffer("mean", torch.zeros(num_taps, width))
            self.register_buffer("std", torch.ones(num_taps, width))
            # a number, since averages of weights are taken of buffers too, and of numbers alone
            self.register_buffer("measured", torch.tensor(0.0))

    @property
    def wants_statistics(self) -> bool:
        """Whether ``measure`` has to be called before the first use."""
        return self.config.target_norm == "channel" and not bool(self.measured)

    def forward(self, targets: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Normalise one tensor a tap, each (batch, frames, channels); they come out in float32."""
        targets = [target.float() for target in targets]
        if self.config.target_norm == "layer_norm":
            return tuple(layer_normed(target) for target in targets)
        if self.config.target_norm == "channel":
            return tuple(
                (target - mean) / std
                for target, mean, std in zip(targets, self.mean, self.std, strict=True)
            )
        return tuple(targets)

    def measure(self, sums: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Set mean and standard deviation of every tap's channels.

        Args:
            sums: For each batch (or rank): sum and sum of squares over valid frames, both
                (taps, channels) in float64, and the number of frames, ().
        """
        total, squares, frames = (torch.stack(parts).sum(0) for parts in zip(*sums, strict=True))
        mean = total / frames
        variance = (squares / frames - mean.square()).clamp(min=0.0)
        # a channel that never varies carries nothing; do not blow its rounding noise up
        std = variance.sqrt().clamp(min=1e-3)
        self.mean.copy_(mean)
        self.std.copy_(std)
        self.measured.fill_(1.0)


def channel_sums(targets: Sequence[Tensor], mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return sum, sum of squares and number of valid frames of a batch; see ``measure``."""
    valid = [target[mask].double() for target in targets]
    total = torch.stack([frames.sum(0) for frames in valid])
    squares = torch.stack([frames.square().sum(0) for frames in valid])
    return total, squares, mask.sum()


_log = logging.getLogger(__name__)


@torch.no_grad()
def measure_channels(
    trainer: L.Trainer,
    forward: Callable[[Batch], tuple[StudentOutput, tuple[Tensor, ...]]],
    seconds: float,
    policy: NonFinitePolicy,
    formats: NumberFormats,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Sum the targets' channels over the first batches, as one process would over all ranks'.

    Args:
        trainer: A Trainer that is about to fit; every rank has to call this.
        forward: Returns the student's output and the targets as the teacher has them.
        seconds: Seconds of audio to measure on, all ranks together.
        policy: Whether targets that are not finite stop the run, or are skipped.
        formats: What they are computed with.

    Returns:
        What ``TargetNorm.measure`` takes: the sums of each batch, equal on all ranks.

    Raises:
        DataError: If a target is not finite and the policy is ``stop``, or nothing is left.
    """
    measured = []
    seconds_read = 0.0
    for number, batch in enumerate(_training_batches(trainer)):
        output, targets = forward(batch)
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
            _log.warning("%s; the batch is skipped", fault)
        seconds_read += float(length)
        if seconds_read >= seconds:
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
