"""The run's directory: everything that a run writes lies in ``trainer.default_root_dir``."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info

from interstack.checkpointing.inspect import (
    CONFIG_KEY,
    ORIGIN_KEY,
    SavedRun,
    checkpoint_files,
    saved_runs,
    written_at,
)
from interstack.errors import CheckpointReadError, ConfigurationError
from interstack.tracking.events import EVENTS_FILE, trim_events
from interstack.tracking.metrics_file import METRICS_FILE, trim_rows
from interstack.tracking.stage_records import RECORD_NAME
from interstack.utils.atomic import write_whole
from interstack.utils.disk import (
    disk_fault,
    is_there,
    reason,
    try_writing,
    unread,
    write_errors,
)
from interstack.utils.environment import versions

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
WANDB_ID_FILE = "wandb_id"
HERE = "."
_FIX = "fix that (free space on a full disk), or give another trainer.default_root_dir"
_OF_A_RUN = (CONFIG_FILE, EVENTS_FILE, METRICS_FILE, RECORD_NAME, CHECKPOINTS)
"""Names by which the directory of a run is recognised; any may be missing after a fault."""
_OF_ONE_CALL = ("ckpt_path", "weights_only")
"""Settings of a single command, which are not saved with the run's."""


def run_directory(config: Namespace) -> Path:
    """Return the run's directory."""
    return Path(config.trainer.default_root_dir)


def checkpoint_directory(config: Namespace) -> Path:
    """Return where the run's checkpoints are."""
    dirpath = config.checkpoint.dirpath
    return run_directory(config) / CHECKPOINTS if dirpath is None else Path(dirpath)


def is_first_process() -> bool:
    """Return whether this process is rank zero, before Lightning has determined it.

    torchrun sets the global rank; Lightning's own launcher the rank on the node, and the user the
    node's; srun the global rank again.
    """
    if "RANK" in os.environ:
        return int(os.environ["RANK"]) == 0
    if "LOCAL_RANK" in os.environ or "NODE_RANK" in os.environ:
        return int(os.environ.get("LOCAL_RANK", 0)) + int(os.environ.get("NODE_RANK", 0)) == 0
    return int(os.environ.get("SLURM_PROCID", 0)) == 0


def set_logger_directories(config: Namespace, resumed: SavedRun | None) -> None:
    """Set the directories of loggers, before they are made; nothing is written.

    Args:
        config: The subcommand's parsed configuration; changed in place. A logger whose ``save_dir``
            is ``.`` gets the run's directory, a W&B logger without an id the run's, which is
            ``WANDB_RUN_ID`` if that is set.
        resumed: The checkpoint from which the run is resumed.

    Raises:
        InterstackError: If what an earlier run left there can't be read.
    """
    directory = run_directory(config)
    for logger in loggers_of(config):
        arguments = getattr(logger, "init_args", None)
        if arguments is not None and str(arguments.get("save_dir")) == HERE:
            arguments.save_dir = str(directory)
            if is_wandb(logger) and arguments.get("id") is None and is_first_process():
                with write_errors(directory / WANDB_ID_FILE, _FIX):
                    begins = resumed is None and _holds_run(directory)
                    arguments.id = _wandb_id(None if begins else directory)


def prepare_directory(config: Namespace, resumed: SavedRun | None) -> None:
    """Prepare the run's directory.

    Args:
        config: The subcommand's parsed configuration, after ``set_logger_directories``.
        resumed: The checkpoint from which the run is resumed. Later checkpoints are moved aside,
            and later records removed. Without one an earlier run in the directory is moved aside.
            Nothing is ever overwritten.

    Raises:
        ConfigurationError: If the directory can't be written.
        InterstackError: If what an earlier run left there can't be read or moved aside.
    """
    directory, checkpoints = run_directory(config), checkpoint_directory(config)
    if is_first_process():
        with write_errors(directory, _FIX):
            if resumed is None:
                if _holds_run(directory):
                    move_aside(directory)
                for path in checkpoint_files(checkpoints):  # of a checkpoint.dirpath elsewhere
                    move_aside(path)
            check_writable(directory)
            if resumed is not None:
                _rewind(resumed, directory, checkpoints)
        for logger in filter(is_wandb, loggers_of(config)):
            arguments = logger.get("init_args") or {}
            if arguments.get("id") and str(arguments.get("save_dir")) == str(directory):
                _keep_wandb_id(directory, arguments["id"])


def loggers_of(config: Namespace) -> list[Any]:
    """Return the loggers of a parsed configuration, each as class and arguments, or a switch."""
    loggers = config.trainer.logger
    return loggers if isinstance(loggers, list) else [loggers]


def is_wandb(logger: Any) -> bool:  # noqa: ANN401, a class and its arguments, or a switch
    """Return whether a logger of a parsed configuration is Weights & Biases."""
    return str(getattr(logger, "class_path", "")).endswith("WandbLogger")


def _holds_run(directory: Path) -> bool:
    return any(is_there(directory / name) for name in _OF_A_RUN)


def move_aside(path: Path) -> None:
    """Rename what an earlier run left to the first free one of ``<name>.1``, ``<name>.2``, …."""
    aside = free_name(path)
    path.rename(aside)
    rank_zero_info(f"an earlier run left {path}: it is now {aside}")


def free_name(path: Path) -> Path:
    """Return the first of ``<name>.1``, ``<name>.2``, … that is not taken."""
    number = 1
    while is_there(aside := path.with_name(f"{path.name}.{number}")):
        number += 1
    return aside


def check_writable(directory: Path) -> None:
    """Refuse a directory that can't be made or written, such as one of a full disk.

    Raises:
        ConfigurationError: In that case.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the run's directory {directory} can't be made ({reason(error)}): give another "
            "trainer.default_root_dir"
        ) from error
    try:
        try_writing(directory)
    except OSError as error:
        raise ConfigurationError(
            f"the run's directory {directory} can't be written ({reason(error)}): free space on "
            "its disk, or give another trainer.default_root_dir"
        ) from error


def _rewind(resumed: SavedRun, directory: Path, checkpoints: Path) -> None:
    """Move aside later checkpoints than that of a resumed run, and remove later records.

    Raises:
        CheckpointReadError: If the disk or file server fails to read a later checkpoint, which may
            be sound: nothing is moved then.
        ConfigurationError: If the run's records can't be read.
    """
    runs, errors = saved_runs(checkpoints)
    unread = {path for path, error in errors.items() if isinstance(error, CheckpointReadError)}
    for path in unread:
        if written_at(path) >= written_at(resumed.path):
            raise CheckpointReadError(
                f"{errors[path]}, or move it away to resume from {resumed.path} at step "
                f"{resumed.step} instead"
            )
    if not resumed.finished:
        for name in (EVENTS_FILE, METRICS_FILE):
            _check_readable(directory / name)
    for run in runs:
        if run.step > resumed.step and not run.path.samefile(resumed.path):
            move_aside(run.path)
    for path in errors.keys() - unread:  # a user may repair them, and they would be overwritten
        move_aside(path)
    if resumed.finished:
        return  # nothing is trained again, so that nothing would be recorded again
    trim_events(directory, resumed.step, resumed.depth)
    metrics = directory / METRICS_FILE
    if is_there(metrics):
        copy, trimmed = free_name(metrics), 0
        try:
            shutil.copyfile(metrics, copy)
            trimmed = trim_rows(metrics, resumed.step, resumed.depth)
        finally:
            if not trimmed:
                copy.unlink(missing_ok=True)


def _check_readable(path: Path) -> None:
    """Refuse a record that can't be read, before anything is moved."""
    try:
        fault = disk_fault(path) if is_there(path) else None
    except OSError as error:
        fault = error
    if fault is not None:
        raise ConfigurationError(unread(path, fault)) from fault


def _wandb_id(directory: Path | None) -> str:
    """Return the id under which all parts of a run are one run in W&B.

    ``WANDB_RUN_ID``, which launchers and agents of sweeps set, takes precedence.

    Args:
        directory: The run's; None for a new run.
    """
    known = "" if directory is None else _known_wandb_id(directory)
    return os.environ.get("WANDB_RUN_ID") or known or uuid.uuid4().hex[:8]


def _known_wandb_id(directory: Path) -> str:
    file = directory / WANDB_ID_FILE
    return file.read_text().strip() if is_there(file) else ""  # empty, as a full disk leaves it


def _keep_wandb_id(directory: Path, wanted: str) -> None:
    """Write the id for when the run is resumed."""
    file = directory / WANDB_ID_FILE
    with write_errors(file, _FIX):
        if wanted != _known_wandb_id(directory):
            write_whole(file, f"{wanted}\n".encode())


class SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run's directory and into every checkpoint.

    Args:
        *positional: SaveConfigCallback's.
        command: The command line.
        **named: SaveConfigCallback's.
    """

    def __init__(self, *positional: Any, command: str, **named: Any) -> None:  # noqa: ANN401
        super().__init__(*positional, **named)
        self.command = command

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write ``config.yaml``; called on rank zero alone."""
        del pl_module
        path, text = Path(trainer.default_root_dir) / CONFIG_FILE, self._text().encode()
        if stage != "fit":
            return
        with write_errors(path, "free space on its disk, or give another trainer.default_root_dir"):
            if is_there(path):
                if path.read_bytes() == text:
                    return
                path.rename(free_name(path))  # the run is resumed with other settings
            write_whole(path, text)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the configuration, so that a checkpoint's path is all that a command needs.

        The command line and versions are for the card of an export.
        """
        del trainer, pl_module
        checkpoint[CONFIG_KEY] = self._text()
        checkpoint[ORIGIN_KEY] = {"command": self.command, "versions": dict(versions())}

    def _text(self) -> str:
        settings = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        for name in _OF_ONE_CALL:
            settings.pop(name, None)
        return yaml.safe_dump(settings, sort_keys=False)
