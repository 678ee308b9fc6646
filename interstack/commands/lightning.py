"""fit, validate, test and predict: LightningCLI with sections for growth and checkpoints."""

from __future__ import annotations

import shlex
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from interstack.checkpointing.callback import Checkpoints
from interstack.checkpointing.run_lock import run_lock
from interstack.commands.quiet import hush_lightning
from interstack.commands.resuming import checkpoint_of, with_saved_config
from interstack.commands.run_directory import (
    SaveConfig,
    is_first_process,
    run_directory,
    settle_in,
)
from interstack.data.datamodule import SpeechDataModule
from interstack.distillation.module import Distillation
from interstack.evaluation.predictions import SaveHiddenStates
from interstack.export.callback import SaveStudent
from interstack.growth.callback import InterleavedStacking
from interstack.tracking.boards import finished_wandb
from interstack.tracking.dashboard import Dashboard
from interstack.tracking.progress_bar import StageProgressBar
from interstack.tracking.stages import StageRecorder

TRAINER_DEFAULTS: dict[str, Any] = {
    "default_root_dir": "runs/interstack",
    # the data module splits over ranks itself, and draws each epoch's batches anew
    "use_distributed_sampler": False,
    "reload_dataloaders_every_n_epochs": 1,
    "enable_model_summary": False,
}


class InterstackCLI(LightningCLI):
    """A LightningCLI whose sections are trainer, model, growth, data and checkpoint.

    Args:
        resources: What is held as long as the command runs.
        **settings: LightningCLI's.
    """

    def __init__(self, *, resources: ExitStack, **settings: Any) -> None:  # noqa: ANN401
        self.resources = resources
        super().__init__(**settings)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add growth and checkpoints; let the model begin at the first stage's depth."""
        parser.add_lightning_class_args(InterleavedStacking, "growth")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.link_arguments("growth.depths", "model.initial_depth", compute_fn=_first)

    def _parse_ckpt_path(self) -> None:
        """Do not lay a checkpoint's settings over what the user says, as LightningCLI would."""

    def before_instantiate_classes(self) -> None:
        """Settle in the run's directory before anything is made that writes."""
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        if config.trainer.enable_progress_bar is False:
            self.trainer_defaults["callbacks"] = [
                callback
                for callback in self.trainer_defaults["callbacks"]
                if not isinstance(callback, StageProgressBar)
            ]
        if self.subcommand == "fit":
            if is_first_process():
                self.resources.enter_context(run_lock(run_directory(config)))
            settle_in(config, checkpoint_of(config, "fit"))
        else:
            checkpoint_of(config, self.subcommand)
            config.trainer.logger = False  # what is judged is printed; the run's own log stays
        if self.subcommand == "predict":
            config.return_predictions = False  # they go to disk, not all into memory


def _first(depths: Sequence[int]) -> int:
    """Return the first stage's depth; an empty list is the growth callback's to refuse."""
    return depths[0] if depths else 1


def run_lightning(arguments: Sequence[str], *, run: bool = True) -> InterstackCLI:
    """Run a LightningCLI subcommand.

    Args:
        arguments: Words of the command line, the subcommand first.
        run: Else only parse, without a subcommand, and instantiate what the arguments describe.

    Returns:
        The command line with its trainer, model and data module.
    """
    hush_lightning()
    command = shlex.join(["python", "-m", "interstack.cli", *arguments])
    own_callbacks = [
        StageProgressBar(),
        StageRecorder(),
        Dashboard(),
        SaveStudent(),
        SaveHiddenStates(),
    ]
    with warnings.catch_warnings(), ExitStack() as resources:
        # Lightning 2.6 against torch 2.14: nothing that a user could mend
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
        # it warns that arguments come from Python although there is a command line: they are it
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        # losses of validation and test are of all ranks already, and their axes rank zero's alone
        on_epochs = r"It is recommended to use `self.log\('(val|test|progress)/"
        warnings.filterwarnings("ignore", message=on_epochs)
        # predictions are written by utterance, so nobody asks for a batch's indices
        warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")
        # nothing is sharded here; and what is validated or predicted with is the average
        warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback")
        resources.enter_context(finished_wandb())
        scratch = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        return InterstackCLI(
            resources=resources,
            model_class=Distillation,
            datamodule_class=SpeechDataModule,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False, "command": command},
            trainer_defaults={**TRAINER_DEFAULTS, "callbacks": own_callbacks},
            auto_configure_optimizers=False,
            args=with_saved_config(arguments, scratch) if run else list(arguments),
            run=run,
        )
