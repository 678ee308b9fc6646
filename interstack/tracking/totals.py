"""What a run has done so far: audio, time and arithmetic, over all ranks and all its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from interstack.tracking.record import StageRecord


@dataclass(frozen=True)
class Totals:
    """Sums over a run.

    Attributes:
        audio_seconds: Audio trained on, padding excluded.
        padded_seconds: The same with the padding.
        training_seconds: Wall-clock of training, growth included and validation excluded.
        flops: Floating-point operations of training.
    """

    audio_seconds: float = 0.0
    padded_seconds: float = 0.0
    training_seconds: float = 0.0
    flops: float = 0.0

    def __sub__(self, other: Totals) -> Totals:
        """Return what has come since another moment of the run."""
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return Totals(*(mine - theirs for mine, theirs in pairs))

    def state_dict(self) -> dict[str, Any]:
        """Return it as primitives."""
        return asdict(self)

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Self:
        """Return the sums that a state holds."""
        return cls(**state)


def totals_of(
    stages: Sequence[StageRecord],
    flops_at: Callable[[int], float],
    optimizer_flops_at: Callable[[int], float],
) -> Totals:
    """Add up a run's stages.

    Args:
        stages: As far as they are read.
        flops_at: Returns the operations of training on a second of audio at a depth, padding
            included.
        optimizer_flops_at: Returns the operations of the optimizer in one of its steps at a depth.
    """
    return Totals(
        sum(stage.audio_seconds for stage in stages),
        sum(stage.padded_seconds for stage in stages),
        sum(stage.training_seconds for stage in stages),
        sum(
            stage.padded_seconds * flops_at(stage.depth)
            + stage.steps * optimizer_flops_at(stage.depth)
            for stage in stages
        ),
    )
