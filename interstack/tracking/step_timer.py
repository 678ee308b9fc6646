"""Where the time of a training step goes, measured while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

PARTS: Final = ("data", "front_end", "teacher", "student_forward", "backward", "optimizer")
"""Parts of a step. ``data`` is the wait for the batch; front ends are the teacher's and the
student's; ``optimizer`` includes what callbacks do between two steps."""

_Time = float | torch.cuda.Event


class StepClock:
    """Takes the time between the parts of those steps that are to be timed.

    On a GPU the times are events in its stream, which nobody waits for before the step is over.

    Args:
        device: Where the step computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._is_timed = False
        self._marks: list[tuple[str, _Time]] = []
        self._handles: list[RemovableHandle] = []
        self._ended = time.perf_counter()
        self._waited = 0.0

    def watch(
        self, teacher: nn.Module | None, student: nn.Module, *, extracts_features: bool = False
    ) -> None:
        """Mark where teacher and student begin and end, by hooks.

        Args:
            teacher: A `Teacher`; None where its targets are cached.
            student: A `Student`.
            extracts_features: Whether its frozen front end is run before it, apart from it.
        """
        if teacher is not None:
            self._at_start(teacher, "student_forward")
            body: Any = teacher.body
            projection = getattr(body, "feature_projection", None)
            if projection is not None:
                self._at_start(projection, "front_end")
            self._at_end(teacher, "teacher")
        model: Any = student.model
        self._at_start(student, "front_end" if extracts_features else "student_forward")
        self._at_start(model.feature_projection, "front_end")
        self._at_end(student, "student_forward")

    def unwatch(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def begin(self, is_timed: bool) -> None:
        """Begin a step, whose batch is there."""
        self._waited = time.perf_counter() - self._ended
        self._is_timed = is_timed
        self._marks.clear()
        self.mark("data")

    def mark(self, part: str) -> None:
        """End a part of the step."""
        if self._is_timed:
            self._marks.append((part, self._now()))

    def end(self) -> dict[str, float]:
        """End the step; return the seconds of its parts if it is timed, and wait for a GPU."""
        self.mark("optimizer")
        marks, self._marks = self._marks, []
        self._ended = time.perf_counter()
        if not self._is_timed:
            return {}
        self._is_timed = False
        parts = dict.fromkeys(PARTS, 0.0) | {"data": self._waited}
        if self._on_gpu:
            torch.cuda.synchronize()
        for (_, before), (part, after) in pairwise(marks):
            parts[part] += _seconds(before, after)
        return parts

    def skip_time(self) -> None:
        """Leave the time until now out of the next step's wait for data, as of a validation."""
        self._ended = time.perf_counter()

    def _now(self) -> _Time:
        if not self._on_gpu:
            return time.perf_counter()
        event: Any = torch.cuda.Event
        mark: torch.cuda.Event = event(enable_timing=True)
        mark.record()
        return mark

    def _at_start(self, module: nn.Module, part: str) -> None:
        self._handles.append(module.register_forward_pre_hook(self._marker(part)))

    def _at_end(self, module: nn.Module, part: str) -> None:
        self._handles.append(module.register_forward_hook(self._marker(part)))

    def _marker(self, part: str) -> Callable[..., None]:
        def mark(*_: object) -> None:
            self.mark(part)

        return mark


def _seconds(before: _Time, after: _Time) -> float:
    if isinstance(before, float) and isinstance(after, float):
        return after - before
    assert isinstance(before, torch.cuda.Event)
    assert isinstance(after, torch.cuda.Event)
    return float(before.elapsed_time(after)) / 1000
