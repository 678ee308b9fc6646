"""``events.jsonl``, the record that a run keeps of itself: a line of JSON an event."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from interstack.errors import ConfigurationError
from interstack.tracking.metrics import AXES
from interstack.utils.atomic import write_whole
from interstack.utils.disk import append_or_defer, is_there, unread

EVENTS_FILE: Final = "events.jsonl"
"""In the run's directory."""

EventKind = Literal["point", "validation", "growth", "recovery", "similarity", "stage", "precision"]
"""``point``: a logged step. ``validation``: its losses. ``growth``: layers of a growth step, and
the validation loss on both of its sides. ``recovery``: the training loss is back. ``similarity``:
of layers. ``stage``: a stage's end. ``precision``: how far student or teacher are from float32 in
the number format that they compute in."""
Event = Mapping[str, Any]
"""``kind``, ``step`` (optimizer steps done), and what belongs to the kind."""


def append_event(directory: Path, event: Event) -> None:
    """Append an event to a run's file; where the disk is full it is kept and written later.

    Args:
        directory: The run's.
        event: What JSON can hold.
    """
    line = json.dumps(event) + "\n"
    append_or_defer(directory / EVENTS_FILE, line.encode())


def read_events(directory: Path) -> list[Event]:
    """Return a run's events; a line that a run has died in is skipped.

    Raises:
        ConfigurationError: If there is a file that can't be read.
    """
    path = directory / EVENTS_FILE
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigurationError(unread(path, error)) from error
    events: list[Event] = []
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "kind" in event and "step" in event:
            events.append(event)
    return events


def trim_events(directory: Path, step: int, depth: int) -> None:
    """Remove what came after a checkpoint: a run that is resumed from it logs that again.

    Args:
        directory: The run's.
        step: Optimizer steps of the checkpoint.
        depth: Encoder layers of its student.

    Raises:
        ConfigurationError: If there is a file that can't be read.
        OSError: If it can't be written.
    """
    path = directory / EVENTS_FILE
    if is_there(path):
        kept = [event for event in read_events(directory) if _is_kept(event, step, depth)]
        write_whole(path, "".join(json.dumps(event) + "\n" for event in kept).encode())


def _is_kept(event: Event, step: int, depth: int) -> bool:
    if event["kind"] in ("stage", "similarity"):  # of the end of a stage: a deeper one follows
        return is_before(event["step"], event["depth"] + 1, step, depth)
    return is_before(step_index(event), event.get("to_depth"), step, depth)


def is_before(index: int, grown_to: float | None, step: int, depth: int) -> bool:
    """Return whether a record was made before a checkpoint was.

    Args:
        index: Index of the record's step; of the next one for a growth step.
        grown_to: Depth after a growth step, which has the index of the checkpoint's next step
            whether it came before the checkpoint or after it; None for other records.
        step: Optimizer steps of the checkpoint, so the index of the next one.
        depth: Encoder layers of its student.
    """
    return index < step or (index == step and grown_to is not None and grown_to <= depth)


def step_index(event: Event) -> int:
    """Return the optimizer step that an event belongs to, counted from 0 as by Lightning.

    A growth step comes before the next one; all else belongs to the last one.
    """
    return int(event["step"]) - int(event["kind"] != "growth")


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
"""Metrics of a growth step, and of the recovery from it: training losses, and steps."""


def event_figures(event: Event) -> dict[str, float]:
    """Return an event's scalars by their names, the axes among them; none of tables and maps.

    What is unknown, such as a loss without a validation split, is left out.
    """
    figures: dict[str, Any] = {axis: event[axis] for axis in AXES if axis in event}
    match event["kind"]:
        case "point":
            figures |= {name: event[name] for name in event if name not in ("kind", "step")}
        case "validation":
            figures |= event["losses"]
        case "growth":
            figures |= {name: event[key] for name, key in _OF_GROWTH.items()}
        case "recovery":
            figures |= {name: event[key] for name, key in _OF_RECOVERY.items()}
    return {name: float(value) for name, value in figures.items() if value is not None}
