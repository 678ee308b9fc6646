"""fit, validate, test and predict: LightningCLI with the growth callback as its own section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from interstack.data.datamodule import SpeechDataModule
from interstack.distillation.module import Distillation
from interstack.growth.callback import InterleavedStacking


class InterstackCLI(LightningCLI):
    """A LightningCLI whose sections are trainer, model, data and growth."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the growth section, and let the model begin at its first depth."""
        parser.add_lightning_class_args(InterleavedStacking, "growth")
        parser.link_arguments("growth.depths", "model.initial_depth", compute_fn=_first)


def _first(depths: Sequence[int]) -> int:
    """Return the first stage's depth."""
    return depths[0] if depths else 0


def run_lightning(arguments: Sequence[str] | None) -> None:
    """Run a LightningCLI subcommand.

    Args:
        arguments: Words of the command line; those of the process if None.
    """
    defaults: dict[str, Any] = {
        "use_distributed_sampler": False,
        "reload_dataloaders_every_n_epochs": 1,
    }
    InterstackCLI(
        Distillation,
        SpeechDataModule,
        trainer_defaults=defaults,
        auto_configure_optimizers=False,
        args=list(arguments) if arguments is not None else None,
        parser_kwargs={"parser_mode": "yaml"},
    )
