"""What a growth does to the training loss: how far it jumps, and how many steps it takes back."""

from __future__ import annotations

from collections import deque
from statistics import fmean
from typing import Any, Final, Self

_BEFORE: Final = 20
"""Steps whose mean is the loss before a growth."""
_SMOOTHED: Final = 5
"""Steps whose mean is the loss at a step after it: single batches differ by more than a spike."""


class SpikeMeter:
    """Watches the losses around a growth.

    Attributes:
        before: Mean loss of the steps before the growth; None until there has been one.
        peak: Largest smoothed loss since.
        recovered_after: Steps until the smoothed loss was back at ``before``; None until then.
        has_news: Whether it has come back, and nobody has been told; whoever tells takes it back.
    """

    def __init__(self) -> None:
        self.before: float | None = None
        self.peak: float | None = None
        self.recovered_after: int | None = None
        self.has_news = False
        self._recent: deque[float] = deque(maxlen=_BEFORE)
        self._since = 0

    def grown(self) -> None:
        """Begin to watch a growth, from here on."""
        self.before = fmean(self._recent) if self._recent else None
        self.peak = self.recovered_after = None
        self.has_news = False
        self._recent.clear()
        self._since = 0

    def add(self, loss: float) -> None:
        """Take a step's loss."""
        self._recent.append(loss)
        self._since += 1
        if self.before is None or self.recovered_after is not None:
            return
        smoothed = fmean(list(self._recent)[-_SMOOTHED:])
        self.peak = smoothed if self.peak is None else max(self.peak, smoothed)
        if self._since >= _SMOOTHED and smoothed <= self.before:
            self.recovered_after = self._since
            self.has_news = True

    def state_dict(self) -> dict[str, Any]:
        """Return everything as primitives."""
        return {
            "before": self.before,
            "peak": self.peak,
            "recovered_after": self.recovered_after,
            "has_news": self.has_news,
            "recent": list(self._recent),
            "since": self._since,
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Self:
        """Return the meter that a state is of."""
        meter = cls()
        meter.before, meter.peak = state["before"], state["peak"]
        meter.recovered_after = state["recovered_after"]
        meter.has_news = state.get("has_news", False)  # older checkpoints do not say
        meter._recent.extend(state["recent"])
        meter._since = state["since"]
        return meter
