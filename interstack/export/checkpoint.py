"""A student out of a checkpoint, without its teacher, its data or a Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from interstack.checkpointing.reading import newest_run, read_checkpoint
from interstack.distillation.structure import CHECKPOINT_KEY, rebuild_student
from interstack.errors import CheckpointError
from interstack.models.student import Student

_PREFIX: Final = "student."
"""Of the student's weights in a checkpoint."""


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a path means: a file, or the newest one of a run's directory.

    Raises:
        CheckpointError: If there is none, or none that can be read.
    """
    if not path.is_dir():
        return path
    for directory in (path / "checkpoints", path):
        run = newest_run(directory)
        if run is not None:
            return run.path
    raise CheckpointError(
        f"{path} has no checkpoint: give the directory of a run, or one of its .ckpt files"
    )


def load_student(path: Path) -> tuple[Student, dict[str, Any]]:
    """Rebuild the student of a checkpoint at its depth, with its weights.

    Args:
        path: As `find_checkpoint` takes it.

    Returns:
        The student, in eval mode on the processor, and the whole content of the checkpoint, whose
        tensors stay on the disk until they are used.

    Raises:
        CheckpointError: If it is missing, damaged, or none of interstack's.
    """
    path = find_checkpoint(path)
    read_checkpoint(path)  # says what is wrong with it
    content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    with torch.random.fork_rng(devices=[]):
        student = rebuild_student(content[CHECKPOINT_KEY])
    weights = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in content["state_dict"].items()
        if name.startswith(_PREFIX)
    }
    try:
        student.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {path} are not those of the student that it describes: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error
    return student.eval(), content
