"""What callbacks monitor, held against what a run logs: before hours are spent on a misspelling."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from interstack.errors import ConfigurationError
from interstack.growth.callback import callbacks_of
from interstack.tracking.points import AXES, POINT_METRICS, loss_metrics


def check_monitors(trainer: L.Trainer, teacher_taps: Sequence[int] | None) -> None:
    """Refuse callbacks that wait for a metric which the run does not log, or not by then.

    A metric of ours may come later than the first look at it, as what is logged every few steps
    does: a callback then waits for it instead of stopping the run.

    Args:
        trainer: The run's.
        teacher_taps: The teacher's hidden states, which losses are logged for; None where the
            teacher has to be loaded to know them.

    Raises:
        ConfigurationError: With the metrics that there are. A callback of another package may log
            what it likes: with one, Lightning has to find a missing metric itself.
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
    """Refuse to wait for validations that never come, or to look at each more than once."""
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
    """Return whether a callback logs no metrics that are not known here."""
    return type(callback).__module__.startswith(("lightning.", "interstack."))
