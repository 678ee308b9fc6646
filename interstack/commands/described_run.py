"""The run that `fit` would make of the same words, described but not begun."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from interstack.commands.effects import check_sections
from interstack.commands.lightning import TRAINER_DEFAULTS, InterstackCLI
from interstack.commands.quiet import hush_lightning
from interstack.commands.trainer_settings import settle_trainer
from interstack.data.datamodule import SpeechDataModule
from interstack.distillation.module import Distillation
from interstack.growth.callback import InterleavedStacking

OwnOptions = Callable[[LightningArgumentParser], None]
"""Adds a command's own options to those of `fit`."""


@dataclass(frozen=True)
class DescribedRun:
    """What `fit` would work with.

    Attributes:
        trainer: On one device, without logger, progress bar or anything else that writes.
        module: Not set up.
        datamodule: Not set up.
        growth: The callback that would grow the student.
        config: All settings as parsed, the command's own options among them.
    """

    trainer: L.Trainer
    module: Distillation
    datamodule: SpeechDataModule
    growth: InterleavedStacking
    config: Namespace


def describe_run(
    command: str, words: Sequence[str], add_options: OwnOptions = lambda _: None
) -> DescribedRun:
    """Parse a command line as `fit` does, and instantiate what it describes.

    Nothing is written: no run directory, no log, no lock.

    Args:
        command: The command's name, for its help.
        words: What follows it.
        add_options: Adds the command's own options.

    Raises:
        ConfigurationError: As `fit` would.
    """

    class _Describing(InterstackCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            super().add_arguments_to_parser(parser)
            add_options(parser)

        def before_instantiate_classes(self) -> None:
            check_sections(self.config)
            settle_trainer(self.config, "fit", self.scratch)
            self.config.trainer.logger = False
            self.config.trainer.enable_checkpointing = False
            self.config.trainer.enable_progress_bar = False

        def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:  # noqa: ANN401, Lightning's
            # The growth callback is asked, not called; the others would write. And one device of
            # this machine stands for all that the run may have elsewhere.
            alone = {"callbacks": None, "devices": 1, "num_nodes": 1, "strategy": "auto"}
            return L.Trainer(**(self.config_init.trainer.as_dict() | alone | kwargs))

    hush_lightning()
    with warnings.catch_warnings(), ExitStack() as resources:
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        cli = _Describing(
            command=command,
            resources=resources,
            scratch=Path("nowhere"),  # nothing is written
            model_class=Distillation,
            datamodule_class=SpeechDataModule,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_kwargs={"prog": f"interstack {command}"},
            auto_configure_optimizers=False,
            args=list(words),
            run=False,
        )
    cli.trainer._data_connector.attach_datamodule(cli.model, cli.datamodule)
    cli.model.trainer = cli.trainer
    return DescribedRun(cli.trainer, cli.model, cli.datamodule, cli.config_init.growth, cli.config)
