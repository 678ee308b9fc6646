"""What a run tells of itself as it goes: a line of JSON an event, whatever the loggers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from interstack.errors import ConfigurationError
from interstack.tracking.metrics import AXES
from interstack.utils.atomic import write_whole
from interstack.utils.disk import append_or_defer, is_there, unread

EVENTS_FILE: Final = "events.jsonl"
"""In the run's directory."""

EventKind = Literal["point", "validation", "growth", "recovery", "similarity", "stage", "precision"]
"""``point``: a step that was looked at. ``validation``: its loss. ``growth``: layers, and what it
did to the validation loss. ``recovery``: the training loss is back. ``similarity``: of layers.
``stage``: a stage's end. ``precision``: how far student or teacher are from
float32 in the number format that they compute in."""
Event = Mapping[str, Any]
"""``kind``, ``step`` (optimizer steps done), and what belongs to the kind."""


def append_event(directory: Path, event: Event) -> None:
    """Write an event behind the others; where the disk is full it is kept and written later.

    Args:
        directory: The run's.
        event: What JSON can hold.
    """
    line = json.dumps(event) + "\n"
    append_or_defer(directory / EVENTS_FILE, line.encode())


def read_events(directory: Path) -> list[Event]:
    """Read a run's events; the last line of a run that died may be cut, and is skipped then.

    Raises:
        ConfigurationError: If there is a file that can't be read.
    """
    return list(_events(directory / EVENTS_FILE))


def trim_events(directory: Path, step: int, depth: int) -> None:
    """Leave out what came after a checkpoint: a run that goes on from there tells it again.

    Args:
        directory: The run's.
        step: Optimizer steps that the checkpoint's run had done.
        depth: Layers that its student had: it may have been written before a growth or after it.

    Raises:
        ConfigurationError: If there is a file that can't be read.
        OSError: If it can't be written.
    """
    path = directory / EVENTS_FILE
    if is_there(path):
        kept = [event for event in _events(path) if _came_before(event, step, depth)]
        write_whole(path, "".join(json.dumps(event) + "\n" for event in kept).encode())


def _came_before(event: Event, step: int, depth: int) -> bool:
    if event["step"] != step:
        return bool(event["step"] < step)
    if event["kind"] == "growth":
        return bool(event["to_depth"] <= depth)
    return event["kind"] not in ("stage", "similarity") or bool(event["depth"] < depth)


def _events(path: Path) -> Iterator[Event]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(unread(path, error)) from error
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "kind" in event and "step" in event:
            yield event


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
