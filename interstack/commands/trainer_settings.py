"""The trainer section of a configuration: checked, and in the form that a Trainer takes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    DeviceStatsMonitor,
    LearningRateFinder,
    LearningRateMonitor,
    ProgressBar,
)
from lightning.pytorch.strategies import StrategyRegistry

from interstack.distillation.averaging import check_callback_class
from interstack.distillation.learning_rate_search import FEWEST_STEPS
from interstack.errors import ConfigurationError
from interstack.growth.callback import check_strategy_class
from interstack.settings import check_effect

_DURATIONS = ("duration", "max_time", "val_check_interval")
"""Settings that may be a string, or a dictionary of parts."""

_LEARNING_RATE = ("", "learning_rate", "optimizer.learning_rate", "model.optimizer.learning_rate")
"""Values that ``attr_name`` of a LearningRateFinder may have."""


def normalise_trainer(config: Namespace, command: str, scratch: Path) -> None:
    """Bring the trainer section into the form that a Trainer takes; refuse what can't work.

    Args:
        config: The command's parsed configuration; changed in place.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        scratch: A temporary directory of the command.

    Raises:
        ConfigurationError: If a setting can't work here, or would do nothing.
    """
    trainer = config.trainer
    _write_as_strings(trainer)
    _check_strategy(trainer.strategy)
    _check_numbers(trainer, command)
    if command == "fit":
        _check_effects(trainer)
    _check_callbacks(trainer, command)
    if trainer.barebones:  # it is the switch of these, so their own settings go by it
        for name in ("logger", "log_every_n_steps", "enable_progress_bar", "enable_model_summary"):
            trainer[name] = None
        trainer.enable_checkpointing = False
    if trainer.fast_dev_run:
        if config.get("ckpt_path") is not None and command == "fit":
            raise ConfigurationError(
                f"trainer.fast_dev_run is {trainer.fast_dev_run}, which tries a run from its first "
                f"step on, but --ckpt_path is {config.ckpt_path}: give one of them"
            )
        trainer.default_root_dir = str(scratch / "fast_dev_run")  # nothing of a trial is kept


def has_progress_bar(trainer: Namespace) -> bool:
    """Return whether the user has chosen a progress bar, or none at all."""
    added = (_class_of(each) for each in callbacks_in(trainer))
    return (
        trainer.enable_progress_bar is False
        or trainer.barebones
        or any(isinstance(each, type) and issubclass(each, ProgressBar) for each in added)
    )


def callbacks_in(trainer: Namespace) -> list[Any]:
    """Return the section's callbacks, as a list also where one is given."""
    callbacks = trainer.callbacks
    return callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []


def _check_strategy(strategy: Any) -> None:  # noqa: ANN401, what the user gives
    """Refuse a strategy by its name, since making it may fail with a misleading message."""
    if isinstance(strategy, str) and strategy in StrategyRegistry:
        entry = StrategyRegistry[strategy]
        method = entry["init_params"].get("start_method", "popen")
        check_strategy_class(entry["strategy"], str(method), strategy)
    elif isinstance(strategy, Namespace):
        method = strategy.get("init_args", {}).get("start_method", "popen")
        check_strategy_class(_class_of(strategy), str(method), strategy.class_path)


def _check_numbers(trainer: Namespace, command: str) -> None:
    """Refuse numbers that Lightning accepts, but that would stop a run or have no effect."""
    accumulated = trainer.accumulate_grad_batches
    if accumulated < 1:
        raise ConfigurationError(
            f"trainer.accumulate_grad_batches is {accumulated}: give 1 or more batches a step"
        )
    every = trainer.check_val_every_n_epoch
    if every is not None and every < 1:
        raise ConfigurationError(
            f"trainer.check_val_every_n_epoch is {every}: give 1 or more epochs, or null"
        )
    for name in ("limit_train_batches", "max_steps", "max_epochs") if command == "fit" else ():
        if trainer[name] is not None and trainer[name] == 0 and not trainer.fast_dev_run:
            raise ConfigurationError(
                f"trainer.{name} is {trainer[name]}, with which nothing is trained: give more, or "
                "leave it out"
            )


def _check_effects(trainer: Namespace) -> None:
    """Refuse options that have no effect beside the others, or in any run of interstack."""
    clips = trainer.gradient_clip_val
    if clips is not None and clips < 0:
        raise ConfigurationError(
            f"trainer.gradient_clip_val is {clips}, with which nothing is clipped: give more than "
            "0, or null"
        )
    if not clips:
        check_effect(
            "trainer.gradient_clip_algorithm",
            trainer.gradient_clip_algorithm,
            None,
            f"with trainer.gradient_clip_val {'null' if clips is None else clips}",
            "give trainer.gradient_clip_val",
        )
    for unit in ("steps", "epochs"):
        least, most = trainer[f"min_{unit}"], trainer[f"max_{unit}"]
        if least is not None and most is not None and 0 < most < least:
            raise ConfigurationError(
                f"trainer.min_{unit} is {least}, but trainer.max_{unit} {most} ends the run before "
                "that: give less, or leave it out"
            )
    no_norm = "since neither teacher nor student has a batch norm"
    check_effect("trainer.sync_batchnorm", trainer.sync_batchnorm, False, no_norm)
    divided = "since the data module divides the data among ranks itself"
    check_effect("trainer.use_distributed_sampler", trainer.use_distributed_sampler, False, divided)


def _check_callbacks(trainer: Namespace, command: str) -> None:
    has_none = trainer.barebones or (trainer.logger is not None and not trainer.logger)
    logs = command != "fit" or trainer.fast_dev_run or not has_none
    for callback in callbacks_in(trainer):
        kind = _class_of(callback)
        if isinstance(kind, type):
            check_callback_class(kind)
        if kind in (LearningRateMonitor, DeviceStatsMonitor) and not logs:
            raise ConfigurationError(
                f"trainer.callbacks has {kind.__name__}, which logs, but there is no logger "
                f"(trainer.logger, trainer.barebones): add one, or remove {kind.__name__}"
            )
        if kind is BatchSizeFinder:
            raise ConfigurationError(
                "trainer.callbacks has BatchSizeFinder, but batches are measured in seconds of "
                "audio: remove it and set data.batch_seconds"
            )
        if kind is LearningRateFinder:
            _check_search(callback.init_args)


def _check_search(settings: Namespace) -> None:
    """Refuse a LearningRateFinder that can find no rate, or would not use it."""
    name, steps = "trainer.callbacks: LearningRateFinder", settings.get("num_training_steps", 100)
    attribute = settings.get("attr_name", "")
    if attribute not in _LEARNING_RATE:
        raise ConfigurationError(
            f"{name}.attr_name is {attribute}, but the learning rate is "
            "model.optimizer.learning_rate: leave attr_name out"
        )
    settings.attr_name = ""
    if settings.get("update_attr") is False:
        raise ConfigurationError(
            f"{name}.update_attr is false, so that the rate would be found and not used: leave it "
            "out"
        )
    if steps < FEWEST_STEPS:
        raise ConfigurationError(
            f"{name}.num_training_steps is {steps}, and a search skips the first 10 steps and the "
            f"last: give {FEWEST_STEPS} or more, such as 100"
        )


def _class_of(setting: Any) -> Any:  # noqa: ANN401, what the user gives
    """Return the class that a setting names; None for anything else."""
    path = getattr(setting, "class_path", None)
    if not isinstance(path, str):
        return type(setting) if setting is not None else None
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name, None)


def _write_as_strings(settings: Namespace) -> None:
    """Replace values that a saved configuration would not restore by strings.

    YAML can't hold enumerations, which are defaults of Lightning's; a duration in parts, such as
    ``{hours: 1}``, is saved as the text of a dictionary.
    """
    for owner, key, value in list(_leaves(settings)):
        if isinstance(value, Enum):
            owner[key] = value.value
        elif key in _DURATIONS and isinstance(value, dict | Namespace):
            owner[key] = _duration(dict(value) if isinstance(value, dict) else vars(value))


def _duration(parts: dict[str, Any]) -> object:
    """Return a duration as DD:HH:MM:SS; other parts are returned for Lightning to refuse."""
    try:
        length = timedelta(**parts)
    except TypeError:
        return parts
    minutes, seconds = divmod(length.seconds, 60)
    return f"{length.days:02}:{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"


def _leaves(settings: Any) -> Iterator[tuple[Any, Any, Any]]:  # noqa: ANN401, nested settings
    """Yield owner, key and value of everything in nested settings."""
    items: list[tuple[Any, Any]] = []
    if isinstance(settings, Namespace):
        items = list(vars(settings).items())
    elif isinstance(settings, dict):
        items = list(settings.items())
    elif isinstance(settings, list):
        items = list(enumerate(settings))
    for key, value in items:
        yield settings, key, value
        yield from _leaves(value)
