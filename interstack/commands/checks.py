"""Checks of a whole run, before its directory is changed, or data and teacher are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from interstack.checkpointing.callback import Checkpoints
from interstack.commands.run_directory import is_wandb, loggers_of
from interstack.data.datamodule import SpeechDataModule
from interstack.data.global_batch import check_accumulation
from interstack.distillation.averaging import check_callbacks
from interstack.distillation.module import Distillation
from interstack.distillation.precision import check_precision_option
from interstack.errors import ConfigurationError
from interstack.growth.callback import InterleavedStacking, callbacks_of
from interstack.growth.schedule import run_length
from interstack.models.pretrained import Source
from interstack.settings import check_effect, defaults_of
from interstack.target_cache.reader import TargetCache
from interstack.tracking.metrics import AXES, POINT_METRICS, loss_metrics


def check_sections(config: Namespace) -> None:
    """Refuse options that have no effect beside those of another section.

    Args:
        config: The parsed configuration.

    Raises:
        ConfigurationError: In that case.
    """
    _check_taps(config)
    if config.trainer.enable_checkpointing is False or config.trainer.barebones:
        where = "without checkpoints (trainer.enable_checkpointing, trainer.barebones)"
        for name, default in defaults_of(Checkpoints).items():
            check_effect(f"checkpoint.{name}", config.checkpoint[name], default, where)
    if not any(map(_is_online_wandb, loggers_of(config))):
        where, fix = "without a WandbLogger that is online", "add one to trainer.logger"
        outage = config.tracking.wandb_outage
        check_effect("tracking.wandb_outage", outage, "offline", where, fix)


def _check_taps(config: Namespace) -> None:
    depths, taps = list(config.growth.depths), config.model.teacher.taps
    on_layers = sum(depths[:1]) if taps is None else sum(tap > 0 for tap in taps)
    if len(depths) == 1:
        where, fix = f"with the single depth of growth.depths {depths}", "give more depths"
    elif on_layers < 2:
        where, fix = "with a single tap on a layer, always the top one", "give more taps"
    else:
        return
    placement = config.model.student.tap_placement
    check_effect("model.student.tap_placement", placement, "block_end", where, fix)


def _is_online_wandb(logger: Any) -> bool:  # noqa: ANN401, a class and its arguments, or a switch
    return is_wandb(logger) and not (logger.get("init_args") or {}).get("offline")


def check_monitors(trainer: L.Trainer, teacher_taps: Sequence[int] | None) -> None:
    """Refuse callbacks that wait for a metric which the run does not log, or not by then.

    A metric may be logged after a callback first reads it, as it is every few steps only: an
    EarlyStopping then waits for it instead of stopping the run.

    Args:
        trainer: The run's.
        teacher_taps: The teacher's hidden states for which losses are logged; None if they depend
            on the teacher.

    Raises:
        ConfigurationError: With the known metrics. A callback of another package may log others:
            with one, a missing metric is left to Lightning.
    """
    known = [*loss_metrics(teacher_taps or ()), *POINT_METRICS, *AXES]
    callbacks = callbacks_of(trainer)
    others = [each for each in callbacks if not _is_known(each)]
    for callback in callbacks:
        if not isinstance(callback, EarlyStopping | ModelCheckpoint) or callback.monitor is None:
            continue
        name, monitor = type(callback).__name__, callback.monitor
        if monitor.startswith("val/") and monitor in known:
            _check_validates(trainer, callback, name)
        if teacher_taps is None and "/loss_tap_" in monitor:
            raise ConfigurationError(
                f"trainer.callbacks: {name}.monitor is {monitor}, but without model.teacher.taps "
                "the taps follow from the teacher: give model.teacher.taps, or monitor val/loss"
            )
        if monitor not in known and not others:
            near = get_close_matches(monitor.replace("_", "/", 1), known, n=1)
            raise ConfigurationError(
                f"trainer.callbacks: {name}.monitor is {monitor}, which no callback can monitor: "
                f"give {'one' if not near else f'{near[0]}, or another one'} of {', '.join(known)}"
            )
        if monitor in known and isinstance(callback, EarlyStopping):
            callback.strict = False


def _check_validates(
    trainer: L.Trainer, callback: EarlyStopping | ModelCheckpoint, name: str
) -> None:
    """Refuse to wait for validations that never come, or to read each more than once."""
    if trainer.limit_val_batches == 0:
        raise ConfigurationError(
            f"trainer.callbacks: {name}.monitor is {callback.monitor}, but "
            "trainer.limit_val_batches is 0, so nothing is validated: give 1.0, or monitor "
            "train/loss"
        )
    every = trainer.check_val_every_n_epoch
    at_epochs = isinstance(callback, EarlyStopping) and callback._check_on_train_epoch_end
    if at_epochs and every != 1:
        raise ConfigurationError(
            f"trainer.callbacks: {name}.check_on_train_epoch_end is true, but {callback.monitor} "
            f"is new at validations alone, and trainer.check_val_every_n_epoch is {every}: leave "
            "check_on_train_epoch_end out"
        )


def _is_known(callback: L.Callback) -> bool:
    """Return whether all metrics of a callback are known here."""
    return type(callback).__module__.startswith(("lightning.", "interstack."))


def check_run(
    trainer: L.Trainer,
    module: Distillation,
    datamodule: SpeechDataModule,
    growth: InterleavedStacking,
) -> None:
    """Refuse a fit that would be refused later, after an earlier run was moved aside for it.

    Args:
        trainer: With the callbacks of the run.
        module: Not set up.
        datamodule: Not set up.
        growth: The callback that will grow the student.

    Raises:
        ConfigurationError: If callbacks, accumulation, stages or options contradict each other, or
            have no effect.
    """
    check_callbacks(trainer)
    check_monitors(trainer, module.teacher_config.taps)
    check_accumulation(trainer, datamodule.global_batch_seconds)
    growth.record(run_length(trainer), trial=bool(vars(trainer).get("fast_dev_run")))
    check_precision_option(trainer, module, cached=datamodule.target_cache is not None)


def check_teacher_is_there(module: Distillation, datamodule: SpeechDataModule) -> None:
    """Refuse a fit whose teacher, or the cache of its targets, can't be found.

    Args:
        module: Not set up.
        datamodule: Not set up.

    Raises:
        TeacherError: If there is no such teacher.
        ConfigurationError: If there is no such cache.
    """
    config = module.teacher_config
    if datamodule.target_cache is not None:
        TargetCache(datamodule.target_cache)
    elif config.family is None:
        Source(config.source, config.revision, None, config.local_files_only).read_config()
