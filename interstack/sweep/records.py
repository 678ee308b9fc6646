"""The status of a sweep's jobs, each in a small file beside the run's directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from interstack.errors import ConfigurationError
from interstack.utils.atomic import write_whole
from interstack.utils.disk import is_there, unread, write_errors

Status = Literal["running", "finished", "failed", "interrupted"]

_MAY_CHANGE: Final = (
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.enable_progress_bar",
    "data.num_workers",
    "tracking",
)
"""Settings, or sections, that do not affect the comparison."""


@dataclass(frozen=True)
class Job:
    """A command line that the queue runs in a process of its own.

    Attributes:
        name: Of its record, log and lock.
        words: The command line after ``interstack``.
        directory: Its output.
        settings: Its resolved settings, which may not change once it has started.
        environment: Variables that are added to the queue's own.
        needs: Name of the job that has to finish before; empty for none.
    """

    name: str
    words: tuple[str, ...]
    directory: Path
    settings: Mapping[str, Any]
    environment: Mapping[str, str]
    needs: str = ""

    @property
    def record(self) -> Path:
        """The file of its status."""
        return self.directory.parent / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """The file of its output."""
        return self.directory.parent / f"{self.name}.log"


@dataclass(frozen=True)
class JobRecord:
    """A job's status on the disk.

    Attributes:
        status: ``running`` also of a job that was killed.
        words: Its command line.
        settings: Its resolved settings.
        exit_status: Of its last process; None while it runs.
    """

    status: Status
    words: Sequence[str]
    settings: Mapping[str, Any]
    exit_status: int | None = None


def read_record(path: Path) -> JobRecord | None:
    """Return the record of a job; None before it has started.

    Raises:
        ConfigurationError: If it can't be read.
    """
    try:
        if not is_there(path):
            return None
        return JobRecord(**json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigurationError(unread(path, error)) from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{path} is damaged ({type(error).__name__}): remove it, and the run is resumed from "
            "its last checkpoint"
        ) from error


def is_finished(path: Path) -> bool:
    """Return whether the job of a record has finished.

    Raises:
        ConfigurationError: If its record can't be read.
    """
    record = read_record(path)
    return record is not None and record.status == "finished"


def write_record(job: Job, status: Status, exit_status: int | None = None) -> None:
    """Write a job's status, atomically.

    Raises:
        InterstackError: If it can't be written.
    """
    record = JobRecord(status, job.words, job.settings, exit_status)
    with write_errors(job.record, "free space, then give the same command again, which resumes"):
        write_whole(job.record, json.dumps(asdict(record), indent=1).encode())


def check_same_settings(job: Job) -> None:
    """Refuse a job that has started with other settings.

    The settings of a job without a checkpoint may still change.

    Raises:
        ConfigurationError: With every difference.
    """
    record = read_record(job.record)
    if record is None:
        return
    try:
        has_checkpoint = any(job.directory.glob("checkpoints/*.ckpt"))
    except OSError as error:
        raise ConfigurationError(unread(job.directory, error)) from error
    if record.status != "finished" and not has_checkpoint:
        return
    then = record.settings
    now = json.loads(json.dumps(job.settings, default=str))
    differences = [
        f"{name} was {then[name]} and is {now[name]}"
        for name in then
        if name in now and then[name] != now[name] and not name.startswith(_MAY_CHANGE)
    ]
    if differences:
        state = "is finished" if record.status == "finished" else "has started"
        raise ConfigurationError(
            f"{job.name} {state} with other settings: {'; '.join(differences)}: give those, "
            f"another name for its arm, or another --output (or remove {job.record} and "
            f"{job.directory})"
        )
