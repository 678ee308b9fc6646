"""The scalars that loggers are given of an event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from interstack.tracking.events import Event
from interstack.tracking.points import AXES

_OF_GROWTH: Final = {
    "growth/depth": "to_depth",
    "growth/validation_before": "validation_before",
    "growth/validation_after": "validation_after",
}
_OF_RECOVERY: Final = {
    "growth/loss_before": "before",
    "growth/loss_peak": "peak",
    "growth/recovered_after_steps": "after_steps",
}
GROWTH_METRICS: Final = (*_OF_GROWTH, *_OF_RECOVERY)
"""What a growth has, and the recovery from it: training losses, and the steps it took."""


def event_figures(event: Event) -> dict[str, float]:
    """Return an event's scalars by their names, the axes among them; none of tables and maps.

    What is not known, such as a loss without a validation split, is left out.
    """
    axes = {axis: event[axis] for axis in AXES if axis in event}
    figures = {**axes, **_own(event)}
    return {name: float(value) for name, value in figures.items() if value is not None}


def step_index(event: Event) -> int:
    """Return the optimizer step that an event belongs to, counted from 0 as by Lightning.

    A growth comes before the step that is next; all else belongs to the one that is done.
    """
    return int(event["step"]) - int(event["kind"] != "growth")


def _own(event: Event) -> Mapping[str, Any]:
    match event["kind"]:
        case "point":
            return {name: event[name] for name in event if name not in ("kind", "step")}
        case "validation":
            losses: Mapping[str, Any] = event["losses"]
            return losses
        case "growth":
            return {name: event[key] for name, key in _OF_GROWTH.items()}
        case "recovery":
            return {name: event[key] for name, key in _OF_RECOVERY.items()}
    return {}
