"""A run as its own records have it, whether it has finished, is running or died."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from interstack.errors import ConfigurationError
from interstack.tracking.events import EVENTS_FILE, Event, read_events
from interstack.tracking.stage_records import RECORD_NAME, EarlyEnd
from interstack.utils.disk import unread

VALIDATION_LOSS = "val/loss"


@dataclass(frozen=True)
class Run:
    """The records of a run.

    Attributes:
        name: Its name in the report.
        status: ``running``, ``finished``, ``ended_early`` or ``interrupted``; ``running`` also for
            a run that died.
        last_record: Time of its last record, by which a run that died is recognised.
        seed: Of the run; None if its configuration is not there.
        recipe: Its configuration without the seed and its directory: runs that share it differ by
            their seeds alone.
        points: Logged steps, in order.
        validations: Validation losses, in order.
        growths: In order.
        stages: Stages that have ended, in order.
        similarities: Of the layers at their ends.
        recoveries: Of the training loss after growth steps.
        early_end: Where the run ended, if that was before its schedule did.
    """

    name: str
    status: str
    last_record: datetime
    seed: int | None
    recipe: str
    points: Sequence[Event]
    validations: Sequence[Event]
    growths: Sequence[Event]
    stages: Sequence[Event]
    similarities: Sequence[Event]
    recoveries: Sequence[Event]
    early_end: EarlyEnd | None = None

    @property
    def grows(self) -> bool:
        """Whether the student has grown, or is to."""
        return len(self.growths) > 0 or len(self._planned_depths()) > 1

    @property
    def final_depth(self) -> int:
        """Layers of the last stage; without a configuration those of the deepest so far."""
        return max([*self._planned_depths(), *(int(point["train/depth"]) for point in self.points)])

    def _planned_depths(self) -> list[int]:
        depths = yaml.safe_load(self.recipe).get("growth", {}).get("depths", [])
        return list(depths)

    def losses(self) -> list[tuple[Event, float]]:
        """Return all validation losses: of validations, and of the ends of stages."""
        found = [(event, float(event["losses"][VALIDATION_LOSS])) for event in self.validations]
        for stage in self.stages:
            if stage["validation_after"] is not None:
                found.append((stage, float(stage["validation_after"])))
        return sorted(found, key=lambda each: each[0]["step"])


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """Return the runs of directories, each with a name of its own.

    Raises:
        ConfigurationError: If one has no records of a run.
    """
    names = [directory.resolve().name for directory in directories]
    return [
        _read(directory, name if names.count(name) == 1 else str(directory))
        for directory, name in zip(directories, names, strict=True)
    ]


def _read(directory: Path, name: str) -> Run:
    events = read_events(directory)
    if not any(event["kind"] == "point" for event in events):
        raise ConfigurationError(
            f"{directory} has no {EVENTS_FILE} with a point of a run: give the directory of a run "
            "that has done trainer.log_every_n_steps steps at least"
        )
    config = _config(directory)
    seed = config.pop("seed_everything", None)
    config.get("trainer", {}).pop("default_root_dir", None)
    config.get("trainer", {}).pop("logger", None)
    status, early_end = _end(directory)
    return Run(
        name,
        status,
        datetime.fromtimestamp((directory / EVENTS_FILE).stat().st_mtime, UTC),
        seed if isinstance(seed, int) and not isinstance(seed, bool) else None,
        yaml.safe_dump(config),
        _of_kind(events, "point"),
        _of_kind(events, "validation"),
        _of_kind(events, "growth"),
        _of_kind(events, "stage"),
        _of_kind(events, "similarity"),
        _of_kind(events, "recovery"),
        early_end,
    )


def _of_kind(events: Iterable[Event], kind: str) -> list[Event]:
    """Return events of a kind in order, of each step the last."""
    found = {event["step"]: event for event in events if event["kind"] == kind}
    return [found[step] for step in sorted(found)]


def _config(directory: Path) -> dict[str, Any]:
    path = directory / "config.yaml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, yaml.YAMLError, ValueError):
        return {}
    except OSError as error:
        raise ConfigurationError(unread(path, error)) from error
    return found if isinstance(found, dict) else {}


def _end(directory: Path) -> tuple[str, EarlyEnd | None]:
    """Return a run's status, and where it ended if that was early."""
    path = directory / RECORD_NAME
    try:
        record: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
        early = record.get("early_end")
        return str(record["status"]), None if early is None else EarlyEnd(**early)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return "unknown", None
    except OSError as error:
        raise ConfigurationError(unread(path, error)) from error
