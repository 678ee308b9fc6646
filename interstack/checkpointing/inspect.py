"""Finding checkpoints, and reading what run they are of."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from interstack.errors import CheckpointError, CheckpointReadError
from interstack.growth.callback import InterleavedStacking
from interstack.tracking.stages import StageRecorder
from interstack.utils.disk import disk_fault, is_there, unread

log = logging.getLogger(__name__)

CONFIG_KEY = "interstack_config"
"""Key in a checkpoint of the configuration, as YAML."""
ORIGIN_KEY = "interstack_origin"
"""Key in a checkpoint of the command and the versions that wrote it."""


class SavedRun(NamedTuple):
    """What a checkpoint records of its run.

    Attributes:
        path: The checkpoint.
        step: Optimizer steps done.
        depth: Encoder layers of the student.
        model: The LightningModule's settings.
        config: The whole configuration as YAML; None if the command line did not start the run.
        schedule: The growth schedule at the run's start, as primitives; None if it does not grow.
        finished: Whether the run is complete.
    """

    path: Path
    step: int
    depth: int
    model: dict[str, Any]
    config: str | None
    schedule: dict[str, Any] | None
    finished: bool


def read_checkpoint(path: Path) -> SavedRun:
    """Read a checkpoint's run; its tensors stay on the disk.

    Raises:
        CheckpointReadError: If the disk or file server fails, and the file may be sound.
        CheckpointError: If it is missing, damaged, or not interstack's.
    """
    try:
        found = is_there(path) and path.is_file()
    except OSError as error:
        raise CheckpointReadError(unread(path, error)) from error
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory and no checkpoint; {_there_is(path.parent)}")
    if not found:
        raise CheckpointError(f"there is no checkpoint {path}: {_there_is(path.parent)}")
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for a file that is no checkpoint
        fault = disk_fault(path)  # which torch raises as one of these kinds, too
        if fault is not None:
            raise CheckpointReadError(unread(path, fault)) from error
        raise CheckpointError(
            f"{path} can't be read as a checkpoint ({type(error).__name__}); "
            f"{_there_is(path.parent)}"
        ) from error
    try:
        growth = content.get("callbacks", {}).get(InterleavedStacking.__qualname__, {})
        return SavedRun(
            path,
            content["global_step"],
            len(content["interstack_student"]["lineage"]),
            content["hyper_parameters"],
            content.get(CONFIG_KEY),
            growth.get("schedule"),
            _is_finished(content, growth.get("schedule")),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no checkpoint of an interstack run") from error


def _is_finished(content: dict[str, Any], schedule: dict[str, Any] | None) -> bool:
    """Return whether the stage recorder has the last scheduled stage as finished."""
    stages = content["callbacks"].get(StageRecorder.__qualname__, {}).get("stages")
    if not stages or not stages[-1]["finished"]:
        return False
    return schedule is not None and bool(stages[-1]["depth"] == schedule["stages"][-1]["depth"])


class FoundRuns(NamedTuple):
    """All checkpoints of a directory.

    Attributes:
        runs: Those that can be read, the oldest step first.
        errors: Errors of the others, by path.
    """

    runs: list[SavedRun]
    errors: dict[Path, CheckpointError]


def saved_runs(directory: Path) -> FoundRuns:
    """Read all checkpoints of a directory.

    Raises:
        CheckpointReadError: If the directory is there but can't be read.
    """
    runs: list[SavedRun] = []
    errors: dict[Path, CheckpointError] = {}
    for path in checkpoint_files(directory):
        try:
            runs.append(read_checkpoint(path))
        except CheckpointError as error:
            errors[path] = error
    return FoundRuns(sorted(runs, key=lambda run: (run.step, written_at(run.path))), errors)


def newest_run(directory: Path) -> SavedRun | None:
    """Return the newest checkpoint of a directory; None if there is none at all.

    A damaged newest one is skipped for an older one, with a warning. One that the disk or file
    server fails to read is not: it may be sound, and an older one would lose its work.

    Raises:
        CheckpointError: If there are checkpoints, but the newest or all of them can't be read.
    """
    runs, errors = saved_runs(directory)
    if not runs and not errors:
        return None
    if not runs:
        reasons = ", ".join(_short(error) for error in errors.values())
        raise CheckpointError(
            f"none of the checkpoints in {directory} can be read ({reasons}): give the same "
            "command again once they can, or move them away to start a new run"
        )
    newest = runs[-1]
    for path, error in errors.items():
        if written_at(path) < written_at(newest.path):
            log.warning("an older checkpoint is skipped: %s", _short(error))
        elif isinstance(error, CheckpointReadError):
            raise CheckpointReadError(
                f"{error}, or move it away to resume from {newest.path} at step "
                f"{newest.step} instead"
            ) from error
        else:
            log.warning(
                "the newest checkpoint is skipped: %s; the run continues from %s of step %d, and "
                "steps after it are trained again",
                _short(error),
                newest.path,
                newest.step,
            )
    return newest


def checkpoint_files(directory: Path) -> list[Path]:
    """Return the paths of a directory's checkpoints; none if there is no directory.

    Raises:
        CheckpointReadError: If the directory is there but can't be read.
    """
    try:  # not by `glob`, for which a directory that can't be read is empty
        if not is_there(directory):
            return []
        return sorted(path for path in directory.iterdir() if path.suffix == ".ckpt")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointReadError(unread(directory, error)) from error


def _short(error: CheckpointError) -> str:
    """Return an error's message without the fix and the list of other checkpoints."""
    return str(error).partition("; ")[0].partition(": give the")[0]


def written_at(path: Path) -> float:
    """Return when a file was written, in seconds since the epoch; infinity if unknown."""
    try:
        return path.stat().st_mtime
    except OSError:
        return math.inf


def _there_is(directory: Path) -> str:
    """Return the names of the checkpoints that a user could have meant."""
    try:
        names = [path.name for path in checkpoint_files(directory)]
    except CheckpointError as error:
        return str(error)
    return f"{directory} has {', '.join(names)}" if names else f"{directory} has no checkpoint"
