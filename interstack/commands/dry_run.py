"""The run of a command line of `fit`, instantiated but not started."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.cli import LightningArgumentParser

from interstack.commands.checks import check_run, check_sections
from interstack.commands.lightning import TRAINER_DEFAULTS, InterstackCLI
from interstack.commands.trainer_settings import normalise_trainer
from interstack.data.datamodule import SpeechDataModule
from interstack.distillation.module import Distillation
from interstack.growth.callback import InterleavedStacking, callbacks_of
from interstack.utils.console import hush_lightning

_REFUSING: Final = ("enable_checkpointing", "enable_progress_bar")
"""Switches that contradict some callbacks."""
_KEPT: Final = (GradientAccumulationScheduler,)
"""Callbacks that decide how many batches a step has."""

OwnOptions = Callable[[LightningArgumentParser], None]
"""Adds a command's own options to those of `fit`."""


@dataclass(frozen=True)
class DescribedRun:
    """The objects of `fit`.

    Attributes:
        trainer: On one device, without logger, progress bar or anything else that writes; of its
            callbacks only those that decide how many batches a step has.
        module: Not set up.
        datamodule: Not set up.
        growth: The callback that grows the student.
        config: All settings as parsed, the command's own options among them.
    """

    trainer: L.Trainer
    module: Distillation
    datamodule: SpeechDataModule
    growth: InterleavedStacking
    config: Namespace


def describe_run(
    command: str,
    words: Sequence[str],
    add_options: OwnOptions = lambda _: None,
    *,
    trains: bool = False,
) -> DescribedRun:
    """Parse a command line as `fit` does, and instantiate the run.

    Nothing is written: no run directory, no log, no lock.

    Args:
        command: The command's name, for its help.
        words: The words after it.
        add_options: Adds the command's own options.
        trains: Check the run as a whole as `fit` does, which needs its length.

    Raises:
        ConfigurationError: As `fit` would.
    """

    class _Describing(InterstackCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            super().add_arguments_to_parser(parser)
            add_options(parser)

        def before_instantiate_classes(self) -> None:
            check_sections(self.config)
            normalise_trainer(self.config, "fit", self.scratch)
            trainer = self.config.trainer
            self.as_given = {name: trainer[name] for name in _REFUSING}
            for name in ("logger", *_REFUSING):
                trainer[name] = False

        def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:  # noqa: ANN401, Lightning's
            # Callbacks are made so that they are refused as by `fit`; they are never called. One
            # device of this machine stands for all that the run may have elsewhere.
            alone = {"devices": 1, "num_nodes": 1, "strategy": "auto", **self.as_given}
            settings = self.config_init.trainer.as_dict() | alone | kwargs
            return L.Trainer(**settings)

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
    growth: InterleavedStacking = cli.config_init.growth
    if trains:
        check_run(cli.trainer, cli.model, cli.datamodule, growth)
    kept = [each for each in callbacks_of(cli.trainer) if isinstance(each, _KEPT)]
    vars(cli.trainer)["callbacks"] = kept
    cli.trainer._data_connector.attach_datamodule(cli.model, cli.datamodule)
    cli.model.trainer = cli.trainer
    return DescribedRun(cli.trainer, cli.model, cli.datamodule, growth, cli.config)
