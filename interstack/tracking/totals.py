"""What a run has done so far: audio, time and arithmetic, over all ranks and all its parts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from interstack.constants import SAMPLE_RATE
from interstack.data.batch import Batch
from interstack.tracking.throughput import AudioMeter, Stopwatch


@dataclass
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

    def __add__(self, other: Totals) -> Totals:
        """Return the sums of both."""
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return Totals(*(mine + theirs for mine, theirs in pairs))

    def state_dict(self) -> dict[str, Any]:
        """Return it as primitives."""
        return asdict(self)

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Self:
        """Return the sums that a state holds."""
        return cls(**state)


class TotalsMeter:
    """Adds to the totals step by step, and waits for the device only when they are read.

    Attributes:
        totals: As of the last reading.
        since: The part of them that has come since it was last taken, as of the last reading.
    """

    def __init__(self, totals: Totals | None = None, since: Totals | None = None) -> None:
        self.totals = totals or Totals()
        self.since = since or Totals()
        self._audio = AudioMeter()
        self._padded: Tensor | None = None
        self._stopwatch = Stopwatch()
        self._seconds = 0.0

    def rest(self) -> None:
        """Leave the time since the last batch out."""
        self._stopwatch.lap()

    def count_time(self) -> None:
        """Count the time since the last call."""
        self._seconds += self._stopwatch.lap()

    def add(self, batch: Batch, world_size: int) -> None:
        """Count a batch; every rank has to call it."""
        self.count_time()
        self._audio.add(batch, world_size)
        padded = batch.num_samples.max() * len(batch.ids)
        if world_size > 1:
            torch.distributed.all_reduce(padded)
        self._padded = padded if self._padded is None else self._padded + padded

    def read(self, flops_per_second: float) -> None:
        """Bring the totals up to date; waits for the device.

        Args:
            flops_per_second: Operations of training on a second of padded audio since the last
                reading.
        """
        padded = 0.0 if self._padded is None else int(self._padded) / SAMPLE_RATE
        new = Totals(self._audio.take(), padded, self._seconds, padded * flops_per_second)
        self._padded, self._seconds = None, 0.0
        self.totals += new
        self.since += new

    def take_since(self) -> Totals:
        """Return what has come since the last call, as of the last reading."""
        since, self.since = self.since, Totals()
        return since
