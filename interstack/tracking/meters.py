"""Meters of a run: audio, time, throughput, and the training loss around a growth step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import fmean
from typing import Any, Final, NamedTuple, Self

import torch
from torch import Tensor

from interstack.constants import SAMPLE_RATE
from interstack.data.batch import Batch

Clock = Callable[[], float]
"""Returns seconds."""


class Audio(NamedTuple):
    """Seconds of audio, without the padding and with it."""

    seconds: float
    padded_seconds: float


class AudioMeter:
    """Counts the audio of all ranks on the device, which is waited for only when it is read."""

    def __init__(self) -> None:
        # each (2,): without padding, with it
        self._num_samples: Tensor | None = None
        self._unfinished: Tensor | None = None  # of a step that further batches belong to

    def add(self, batch: Batch, world_size: int = 1, *, ends_step: bool = True) -> None:
        """Count a batch; every rank has to call it.

        Args:
            batch: One rank's batch.
            world_size: Number of ranks.
            ends_step: Whether an optimizer step has followed it. Without one it is counted with
                the batch that ends the step: a resumed run restarts a step that was interrupted.
        """
        padded = batch.num_samples.max() * len(batch.ids)
        num_samples = torch.stack([batch.num_samples.sum(), padded])
        if world_size > 1:
            # Not the strategy's reduce: it begins with a barrier, which would stall the device.
            torch.distributed.all_reduce(num_samples)
        if self._unfinished is not None:
            num_samples = num_samples + self._unfinished
        if not ends_step:
            self._unfinished = num_samples
            return
        self._unfinished = None
        if self._num_samples is not None:
            num_samples = num_samples + self._num_samples
        self._num_samples = num_samples

    def take(self) -> Audio:
        """Return the audio since the last call; waits for the device."""
        if self._num_samples is None:
            return Audio(0.0, 0.0)
        samples, padded = self._num_samples.tolist()
        self._num_samples = None
        return Audio(samples / SAMPLE_RATE, padded / SAMPLE_RATE)


class Stopwatch:
    """Measures wall-clock in laps; the caller decides which laps count."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._mark = clock()

    def lap(self) -> float:
        """Return the seconds since the last call, or since the watch was made."""
        now = self._clock()
        seconds, self._mark = now - self._mark, now
        return seconds


class Throughput:
    """Seconds of audio a second over the last stretch of uninterrupted training.

    Args:
        window: Seconds to average over; one interval between two readings at least.
        clock: Returns seconds.
    """

    def __init__(self, window: float = 30.0, clock: Clock = time.perf_counter) -> None:
        self._window = window
        self._clock = clock
        self._readings: deque[tuple[float, float]] = deque()  # time, audio since the last reading

    @property
    def is_idle(self) -> bool:
        """Whether the next reading starts a stretch."""
        return not self._readings

    def interrupt(self) -> None:
        """Start a new stretch, after a validation or a growth step."""
        self._readings.clear()

    def update(self, audio_seconds: float) -> float | None:
        """Add a reading, and return seconds of audio a second.

        Args:
            audio_seconds: Audio since the last reading; a stretch's first one does not count.

        Returns:
            The throughput; None at the first reading of a stretch.
        """
        now = self._clock()
        self._readings.append((now, audio_seconds))
        while len(self._readings) > 2 and now - self._readings[0][0] > self._window:
            self._readings.popleft()
        elapsed = now - self._readings[0][0]
        if elapsed <= 0:
            return None
        return sum(audio for _, audio in list(self._readings)[1:]) / elapsed


_BEFORE: Final = 20
"""Steps whose mean is the loss before a growth step."""
_SMOOTHED: Final = 5
"""Steps whose mean is the loss at a step after it: single batches differ by more than a spike."""


class SpikeMeter:
    """Watches the training loss around a growth step.

    Attributes:
        before: Mean loss of the steps before it; None until the student has grown.
        peak: Largest smoothed loss since.
        recovered_after: Steps until the smoothed loss was back at ``before``; None until then.
        is_unlogged: Whether the loss is back and that is not logged yet; whoever logs it resets it.
    """

    def __init__(self) -> None:
        self.before: float | None = None
        self.peak: float | None = None
        self.recovered_after: int | None = None
        self.is_unlogged = False
        self._recent: deque[float] = deque(maxlen=_BEFORE)
        self._since = 0

    def start(self) -> None:
        """Watch a growth step, which has just taken place."""
        self.before = fmean(self._recent) if self._recent else None
        self.peak = self.recovered_after = None
        self.is_unlogged = False
        self._recent.clear()
        self._since = 0

    def add(self, loss: float) -> None:
        """Add a step's loss."""
        self._recent.append(loss)
        self._since += 1
        if self.before is None or self.recovered_after is not None:
            return
        smoothed = fmean(list(self._recent)[-_SMOOTHED:])
        self.peak = smoothed if self.peak is None else max(self.peak, smoothed)
        if self._since >= _SMOOTHED and smoothed <= self.before:
            self.recovered_after = self._since
            self.is_unlogged = True

    def state_dict(self) -> dict[str, Any]:
        """Return everything as primitives."""
        return {
            "before": self.before,
            "peak": self.peak,
            "recovered_after": self.recovered_after,
            "has_news": self.is_unlogged,
            "recent": list(self._recent),
            "since": self._since,
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Self:
        """Return the meter of a state."""
        meter = cls()
        meter.before, meter.peak = state["before"], state["peak"]
        meter.recovered_after = state["recovered_after"]
        meter.is_unlogged = state.get("has_news", False)  # missing in older checkpoints
        meter._recent.extend(state["recent"])
        meter._since = state["since"]
        return meter
