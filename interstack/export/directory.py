"""The student as an ordinary Hugging Face ``HubertModel`` directory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging as transformers_logging

from interstack.checkpointing.atomic import PART
from interstack.checkpointing.disk import is_there, write_errors
from interstack.errors import ConfigurationError
from interstack.models.preprocessing import wav2vec2_feature_extractor
from interstack.models.student import Student


def export_student(student: Student, directory: Path) -> None:
    """Write a student so that ``AutoModel.from_pretrained(directory)`` gives its hidden states.

    The distillation heads stay behind: they belong to the training.

    Args:
        student: The student, at any depth.
        directory: Where ``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` go.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with without_progress_bar():
        student.model.save_pretrained(directory)
    wav2vec2_feature_extractor(
        normalises=student.normalises_waveform, masks=student.config.feat_extract_norm == "layer"
    ).save_pretrained(directory)


@contextmanager
def written_whole(
    directory: Path,
    *,
    replaces: bool = False,
    fix: str = "free space, or give --output another place",
) -> Iterator[Path]:
    """Give a directory to write into, and move it to its place when everything is in it.

    Args:
        directory: Its place: not there yet, or empty.
        replaces: Take the place of what is there.
        fix: What the user can do where it can't be written.

    Raises:
        ConfigurationError: If there is something in its place.
        InterstackError: If it can't be made or written; what was there before is still there then.
    """
    unfinished, earlier = (directory.with_name(f".{directory.name}{end}") for end in (PART, ".old"))
    try:
        with write_errors(directory, fix):
            if directory.is_dir() and not any(directory.iterdir()):
                directory.rmdir()
            taken = directory.is_symlink() or is_there(directory)
            if taken and not replaces:
                raise ConfigurationError(
                    f"{directory} is already there: give --output another directory, or remove it"
                )
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            yield unfinished
            if taken:
                shutil.rmtree(earlier, ignore_errors=True)
                directory.rename(earlier)
            try:
                unfinished.rename(directory)
            except OSError:
                if taken:
                    earlier.rename(directory)
                raise
            shutil.rmtree(earlier, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Save or load quietly: a bar for one file of a small model is noise."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
