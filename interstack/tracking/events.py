"""What a run tells of itself as it goes: a line of JSON an event, whatever the loggers."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from interstack.checkpointing.atomic import write_whole

log = logging.getLogger(__name__)

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
    """Write an event behind the others; a disk that is full costs the event, and not the run.

    Args:
        directory: The run's.
        event: What JSON can hold.
    """
    line = json.dumps(event) + "\n"
    path = directory / EVENTS_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        log.warning("%s can't be written (%s); an event is lost", path, error.strerror)


def read_events(directory: Path) -> list[Event]:
    """Read a run's events; the last line of a run that died may be cut, and is left out then."""
    return list(_events(directory / EVENTS_FILE))


def trim_events(directory: Path, step: int, depth: int) -> None:
    """Leave out what came after a checkpoint: a run that goes on from there tells it again.

    Args:
        directory: The run's.
        step: Optimizer steps that the checkpoint's run had done.
        depth: Layers that its student had: it may have been written before a growth or after it.
    """
    path = directory / EVENTS_FILE
    if path.exists():
        kept = [event for event in _events(path) if _came_before(event, step, depth)]
        write_whole(path, "".join(json.dumps(event) + "\n" for event in kept).encode())


def _came_before(event: Event, step: int, depth: int) -> bool:
    if event["step"] != step:
        return bool(event["step"] < step)
    if event["kind"] == "growth":
        return bool(event["to_depth"] <= depth)
    return event["kind"] not in ("stage", "similarity") or bool(event["depth"] < depth)


def _events(path: Path) -> Iterator[Event]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "kind" in event and "step" in event:
            yield event
