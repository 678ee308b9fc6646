"""When a growing run will end: from the pace of the depths that it has had, to those to come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from interstack.growth.schedule import Stage
from interstack.tracking.throughput import Clock

Cost = Callable[[int], float]


class TimeLeft(NamedTuple):
    """Seconds until the stage ends, and until the run does."""

    stage: float
    run: float


class Outlook:
    """Learns each depth's pace while it trains, and foretells the rest of the run.

    Depths that have not been yet are taken to lie on the line through the two deepest that have; as
    long as there is only one, their pace is taken to go with their arithmetic. A pace includes the
    validations of its stage.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._paces: dict[int, float] = {}  # seconds for a whole run, by depth
        self._begin: tuple[float, float] | None = None  # time, and share of the run that was done

    def interrupt(self) -> None:
        """Begin a stretch: what comes now is no training, or training at another depth."""
        self._begin = None

    def look(self, depth: int, done: float) -> None:
        """Note where the run is; to be called after each step.

        Args:
            depth: The student's.
            done: Share of the run that is done.
        """
        now = self._clock()
        if self._begin is None:
            self._begin = now, done
            return
        begun_at, done_then = self._begin
        if done > done_then:
            self._paces[depth] = (now - begun_at) / (done - done_then)

    def time_left(self, done: float, stages: Sequence[Stage], cost: Cost) -> TimeLeft | None:
        """Return how long the stage and the whole run will still take.

        Args:
            done: Share of the run that is done.
            stages: The one that goes on, and those to come.
            cost: Returns the arithmetic of a step at a depth.

        Returns:
            Seconds; None as long as nothing is known.
        """
        if not self._paces:
            return None
        shares = [max(0.0, stage.end - max(done, stage.start)) for stage in stages]
        seconds = [
            share * self._pace(stage.depth, cost)
            for share, stage in zip(shares, stages, strict=True)
        ]
        return TimeLeft(seconds[0], sum(seconds))

    def _pace(self, depth: int, cost: Cost) -> float:
        if depth in self._paces:
            return self._paces[depth]
        deepest = max(self._paces)
        known = self._paces[deepest]
        if len(self._paces) == 1:
            return known * cost(depth) / cost(deepest)
        shallower = sorted(self._paces)[-2]
        slope = (known - self._paces[shallower]) / (deepest - shallower)
        return known + max(0.0, slope) * (depth - deepest)
