"""Finding checkpoints and looking into them before anything is made from them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch

from interstack.errors import CheckpointError
from interstack.growth.callback import InterleavedStacking

log = logging.getLogger(__name__)


class SavedRun(NamedTuple):
    """A checkpoint, looked into.

    Attributes:
        path: Its file.
        step: Optimizer steps that the run had done.
        depth: Encoder layers that the student had.
        model: The LightningModule's settings.
        config: The run's whole configuration as YAML; None if it was not begun by the command line.
        schedule: The growth schedule it began with, as primitives; None if it does not grow.
    """

    path: Path
    step: int
    depth: int
    model: dict[str, Any]
    config: str | None
    schedule: dict[str, Any] | None


CONFIG_KEY = "interstack_config"
"""Of a checkpoint: the configuration, as YAML."""
ORIGIN_KEY = "interstack_origin"
"""Of a checkpoint: the command and the versions that it was written by."""


def read_checkpoint(path: Path) -> SavedRun:
    """Look into a checkpoint; its tensors stay on the disk.

    Raises:
        CheckpointError: If it is missing, damaged, or none of interstack's.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}: {_there_is(path.parent)}")
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for a file that is no checkpoint
        raise CheckpointError(
            f"{path} can't be read as a checkpoint ({type(error).__name__}); "
            f"{_there_is(path.parent)}"
        ) from error
    if not isinstance(content, dict) or "interstack_student" not in content:
        raise CheckpointError(f"{path} is no checkpoint of an interstack run")
    growth = content.get("callbacks", {}).get(InterleavedStacking.__qualname__, {})
    return SavedRun(
        path,
        content["global_step"],
        len(content["interstack_student"]["lineage"]),
        content["hyper_parameters"],
        content.get(CONFIG_KEY),
        growth.get("schedule"),
    )


def saved_runs(directory: Path) -> list[SavedRun]:
    """Look into all checkpoints of a directory, the oldest step first; damaged ones are told of."""
    runs = []
    for path in sorted(directory.glob("*.ckpt")):
        try:
            runs.append(read_checkpoint(path))
        except CheckpointError as error:
            log.warning("left aside: %s", error)
    return sorted(runs, key=lambda run: (run.step, run.path.stat().st_mtime))


def _there_is(directory: Path) -> str:
    """Say what a user could have meant."""
    names = sorted(path.name for path in directory.glob("*.ckpt")) if directory.is_dir() else []
    return f"{directory} has {', '.join(names)}" if names else f"{directory} has no checkpoint"
