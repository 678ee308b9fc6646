"""The run's directory: everything that a run writes lies in ``trainer.default_root_dir``."""

from __future__ import annotations

import os
from pathlib import Path

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info

from interstack.errors import ConfigurationError

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
METRICS_FILE = "metrics.csv"
HERE = "."


def settle_in(config: Namespace, *, fresh: bool) -> Path:
    """Point loggers and checkpoints at the run's directory, and make sure that it can be written.

    Args:
        config: The subcommand's parsed configuration; changed in place. A logger whose ``save_dir``
            is ``.``, and a checkpoint section without ``dirpath``, get the run's directory.
        fresh: The run begins anew, and an earlier one in the directory is moved aside. A resumed
            run stays where it is and keeps its earlier metrics beside the new ones. Nothing is
            ever overwritten.

    Returns:
        The run's directory.

    Raises:
        ConfigurationError: If the directory can't be written.
    """
    directory = Path(config.trainer.default_root_dir)
    if (_get_rank() or 0) == 0:
        if fresh and (directory / CONFIG_FILE).exists():
            move_aside(directory)
        _check_writable(directory)
        if not fresh and (directory / METRICS_FILE).exists():
            move_aside(directory / METRICS_FILE)  # a CSVLogger would begin it anew
    loggers = config.trainer.logger
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        arguments = getattr(logger, "init_args", None)
        if arguments is not None and str(arguments.get("save_dir")) == HERE:
            arguments.save_dir = str(directory)
    if config.checkpoint.dirpath is None:
        config.checkpoint.dirpath = str(directory / CHECKPOINTS)
    return directory


def move_aside(path: Path) -> None:
    """Rename what an earlier run left to the first free one of ``<name>.1``, ``<name>.2``, …."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    path.rename(aside)
    rank_zero_info(f"an earlier run left {path}: it is now {aside}")


def _check_writable(directory: Path) -> None:
    """Refuse a directory that can't be made or written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the run's directory {directory} can't be made ({error.strerror}): give another "
            "trainer.default_root_dir"
        ) from error
    if not os.access(directory, os.W_OK):
        raise ConfigurationError(
            f"the run's directory {directory} can't be written: give another "
            "trainer.default_root_dir"
        )


class SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run's own directory when a fit begins."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write ``config.yaml``; called on rank zero alone."""
        del pl_module
        if stage == "fit":
            path = Path(trainer.default_root_dir) / CONFIG_FILE
            self.parser.save(
                self.config, str(path), skip_none=False, overwrite=True, multifile=False
            )
