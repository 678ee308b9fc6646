"""From the teacher's hidden states to the student's targets: alignment in time, normalisation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from interstack.distillation.objective import ObjectiveConfig, layer_normed


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
    """Normalises targets as the objective asks; channel statistics are part of the checkpoint.

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
