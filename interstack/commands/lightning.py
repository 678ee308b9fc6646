"""fit, validate, test and predict: LightningCLI with sections for growth and checkpoints."""

from __future__ import annotations

import logging
import shlex
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from interstack.checkpointing.callback import Checkpoints
from interstack.checkpointing.inspect import SavedRun
from interstack.commands.checks import check_run, check_sections, check_teacher_is_there
from interstack.commands.overlays import without_empty_configs
from interstack.commands.refusals import one_line_parse_errors, one_line_refusals
from interstack.commands.resuming import checkpoint_of, with_saved_config
from interstack.commands.run_directory import (
    SaveConfig,
    is_first_process,
    prepare_directory,
    run_directory,
    set_logger_directories,
)
from interstack.commands.trainer_settings import has_progress_bar, normalise_trainer
from interstack.data.datamodule import SpeechDataModule
from interstack.distillation.module import Distillation
from interstack.evaluation.predictions import SaveHiddenStates
from interstack.export.huggingface import SaveStudent
from interstack.growth.callback import InterleavedStacking, callbacks_of
from interstack.tracking.dashboard import Dashboard
from interstack.tracking.progress_bar import StageProgressBar
from interstack.tracking.stages import StageRecorder
from interstack.tracking.wandb import Tracking, finished_wandb, start_wandb
from interstack.utils.console import hush_lightning
from interstack.utils.disk import deferred_writes, write_errors
from interstack.utils.lock import run_lock

log = logging.getLogger(__name__)

TRAINER_DEFAULTS: dict[str, Any] = {
    "default_root_dir": "runs/interstack",
    # the data module divides data among ranks itself, and draws new batches for each epoch
    "use_distributed_sampler": False,
    "reload_dataloaders_every_n_epochs": 1,
    "enable_model_summary": False,
}


class InterstackCLI(LightningCLI):
    """A LightningCLI whose sections are trainer, model, growth, data, checkpoint and tracking.

    Args:
        command: The command's name.
        resources: Contexts that last as long as the command.
        scratch: A temporary directory of the command.
        **settings: LightningCLI's.
    """

    def __init__(
        self,
        *,
        command: str,
        resources: ExitStack,
        scratch: Path,
        **settings: Any,  # noqa: ANN401
    ) -> None:
        self.command = command
        self.resumed: SavedRun | None = None
        self.resources = resources
        self.scratch = scratch
        super().__init__(**settings)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add growth, checkpoints and tracking; the model starts at the first depth."""
        parser.add_lightning_class_args(InterleavedStacking, "growth")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_class_arguments(Tracking, "tracking")
        parser.link_arguments("growth.depths", "model.initial_depth", compute_fn=_first)

    def init_parser(self, **settings: Any) -> LightningArgumentParser:  # noqa: ANN401
        """Make a parser that raises instead of printing its usage and ending the process."""
        return super().init_parser(exit_on_error=False, **settings)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401
        """Parse a command line; what the parser refuses is one line."""
        commands: dict[str, LightningArgumentParser] = getattr(self, "_subcommand_parsers", {})
        words = without_empty_configs(args, commands.get(self.command, parser))
        if commands:
            words = with_saved_config(words, self.scratch)
        with one_line_parse_errors(self.command):
            super().parse_arguments(parser, words)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: a checkpoint's settings must not override the user's, as in LightningCLI."""

    def before_instantiate_classes(self) -> None:
        """Check and complete the settings; nothing of an earlier run is changed yet."""
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        check_sections(config)
        normalise_trainer(config, self.subcommand or "fit", self.scratch)
        if has_progress_bar(config.trainer):
            self._leave_out(StageProgressBar)
        if config.trainer.barebones:
            self._leave_out(Dashboard)
        if self.subcommand is None:
            return
        if self.subcommand == "fit":
            if is_first_process():
                self.resources.enter_context(run_lock(run_directory(config)))
            self.resumed = checkpoint_of(config, "fit")
            set_logger_directories(config, self.resumed)
        else:
            checkpoint_of(config, self.subcommand)
            config.trainer.logger = False  # results are printed; the run's own log stays as it is
        if self.subcommand == "predict":
            config.return_predictions = False  # they go to disk, not all into memory

    def before_fit(self) -> None:
        """Start the W&B run before Lightning does, which would let an outage stop the training."""
        start_wandb(self.trainer.loggers, self.config.fit.tracking.wandb_outage)

    def _leave_out(self, kind: type[L.Callback]) -> None:
        """Make the Trainer without one of our callbacks."""
        callbacks = self.trainer_defaults["callbacks"]
        kept = [callback for callback in callbacks if not isinstance(callback, kind)]
        self.trainer_defaults["callbacks"] = kept

    def instantiate_classes(self) -> None:
        """Make trainer, model and data; what they refuse is the configuration's fault."""
        with one_line_refusals(vars(self._settings()), "construction"):
            super().instantiate_classes()

    def instantiate_trainer(self, **settings: Any) -> L.Trainer:  # noqa: ANN401
        """Make the Trainer, with our checkpoints unless ``enable_checkpointing`` is false."""
        keys = [*self._parser(self.subcommand).callback_keys]
        if self._settings().enable_checkpointing is False:
            keys.remove("checkpoint")
            if self.subcommand == "fit":
                log.warning(
                    "trainer.enable_checkpointing is false: no checkpoint is written, and a run "
                    "that is stopped can't be resumed"
                )
        extra = [self._get(self.config_init, key) for key in keys]
        section = {**self._get(self.config_init, "trainer", default={}), **settings}
        return self._instantiate_trainer(section, extra)

    def _run_subcommand(self, subcommand: str) -> None:
        with one_line_refusals(vars(self._settings()), "run"):
            if subcommand == "fit":
                check_run(self.trainer, self.model, self.datamodule, self.config_init.fit.growth)
                check_teacher_is_there(self.model, self.datamodule)
                prepare_directory(self.config.fit, self.resumed)
                if self.config.fit.ckpt_path is not None:
                    _keep_learning_rate(self.trainer)
            super()._run_subcommand(subcommand)

    def _settings(self) -> Any:  # noqa: ANN401, a Namespace, which jsonargparse leaves untyped
        """Return the trainer section."""
        return (self.config if self.subcommand is None else self.config[self.subcommand]).trainer


def _keep_learning_rate(trainer: L.Trainer) -> None:
    """Remove the search for a learning rate from a resumed run: its checkpoint has the rate."""
    callbacks = callbacks_of(trainer)
    kept = [callback for callback in callbacks if not isinstance(callback, LearningRateFinder)]
    if len(kept) < len(callbacks):
        log.info("the run is resumed with its own learning rate: none is searched")
        vars(trainer)["callbacks"] = kept


def _first(depths: Sequence[int]) -> int:
    """Return the first stage's depth; an empty list is refused by the growth callback."""
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
        # Lightning 2.6 with torch 2.14: nothing that a user could fix
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
        # it warns that arguments come from Python although there is a command line: they are it
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        # losses of validation and test are of all ranks already, and their axes rank zero's alone
        on_epochs = r"It is recommended to use `self.log\('(val|test|progress)/"
        warnings.filterwarnings("ignore", message=on_epochs)
        # predictions are written by utterance: a batch's indices are not needed
        warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")
        # trainer.barebones: nothing is logged, as the user wants it
        warnings.filterwarnings("ignore", message=r"You are trying to `self\.log")
        # nothing is sharded here; and what is validated or predicted with is the average
        warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback")
        resources.enter_context(finished_wandb())
        resources.enter_context(deferred_writes())  # ends first: W&B's part of it needs the run
        with write_errors("the temporary directory", "free space there, or set TMPDIR"):
            scratch = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        return InterstackCLI(
            command=arguments[0] if run else "fit",
            resources=resources,
            scratch=scratch,
            model_class=Distillation,
            datamodule_class=SpeechDataModule,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False, "command": command},
            trainer_defaults={**TRAINER_DEFAULTS, "callbacks": own_callbacks},
            auto_configure_optimizers=False,
            args=list(arguments),
            run=run,
        )
