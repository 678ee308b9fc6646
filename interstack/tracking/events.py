"""What a run tells of itself as it goes: a line of JSON an event, whatever the loggers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from interstack.checkpointing.atomic import write_whole
from interstack.checkpointing.deferred import append_or_defer
from interstack.checkpointing.disk import is_there, unread
from interstack.errors import ConfigurationError

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
