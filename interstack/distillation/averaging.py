"""Averages of the student's weights, as Lightning's ``WeightAveraging`` keeps them.

Lightning lets the average stand in for the module in validation, at the end of training and in
``state_dict`` of checkpoints, which then have the module's own weights elsewhere. What it leaves
open is filled in here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor

from interstack.errors import ConfigurationError
from interstack.growth.averages import averages_of

AVERAGING_KEY: Final = "interstack_averaging"
"""Of a checkpoint whose ``state_dict`` is an average: the callback's name, and its updates."""
_OWN_WEIGHTS: Final = "current_model_state"
"""Of a checkpoint with an average, by Lightning: the weights that are trained."""

_REFUSED: Final[dict[type[L.Callback], str]] = {
    StochasticWeightAveraging: (
        "swaps in learning rates of its own, while model.optimizer sets the rate of every step: "
        "give EMAWeightAveraging or WeightAveraging, with model.optimizer.decay constant for a "
        "constant rate"
    ),
    ModelPruning: (
        "renames the weights that it prunes, so that neither growth nor a checkpoint finds them: "
        "prune the exported student instead"
    ),
    BaseFinetuning: (
        "adds parameters to the optimizer by itself, while growth makes it again from all that are "
        "trained: for a frozen front end give model.student.front_end shared instead"
    ),
}
"""Callbacks of Lightning that can't work here, with the reason and the way out."""


def check_callbacks(trainer: L.Trainer) -> None:
    """Refuse callbacks that would be without effect, or break a run that grows or is resumed.

    Raises:
        ConfigurationError: With the callback's name.
    """
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    for callback in callbacks:
        check_callback_class(type(callback))
    names = [type(each).__name__ for each in callbacks if isinstance(each, WeightAveraging)]
    if len(names) > 1:
        raise ConfigurationError(
            f"trainer.callbacks has {' and '.join(names)}, and each swaps its average for the "
            "student's weights in validation: give one of them"
        )


def check_callback_class(kind: type) -> None:
    """Refuse a class of callbacks that can't work here.

    Raises:
        ConfigurationError: With its name, the reason and the way out.
    """
    for refused, reason in _REFUSED.items():
        if issubclass(kind, refused):
            raise ConfigurationError(f"trainer.callbacks has {kind.__name__}, which {reason}")


def check_averaging_continues(trainer: L.Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Refuse to resume a run without the average that it keeps: its weights would be the average.

    Raises:
        ConfigurationError: In that case.
    """
    resumes = trainer.state.fn == "fit" and _OWN_WEIGHTS in checkpoint
    if resumes and averaging_callback(trainer) is None:
        kept = checkpoint.get(AVERAGING_KEY, {}).get("callback", "WeightAveraging")
        raise ConfigurationError(
            f"trainer.callbacks has no {kept}, but the run keeps an average of its weights: give "
            "the callback that it was started with, or start a new run in another directory"
        )


def own_weights(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a checkpoint's weights as they were trained, where others are their average."""
    weights: Mapping[str, Any] = checkpoint.get(_OWN_WEIGHTS, checkpoint["state_dict"])
    return weights


def averaging_callback(trainer: L.Trainer) -> WeightAveraging | None:
    """Return the Trainer's callback that averages weights, if there is one."""
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    return next((each for each in callbacks if isinstance(each, WeightAveraging)), None)


def averaging_record(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any] | None:
    """Describe the average in primitives; None where there is none, or of no step yet."""
    callback = averaging_callback(trainer)
    updates = [int(each.n_averaged) for each in averages_of(trainer, module)]
    if callback is None or not any(updates):
        return None
    return {"callback": type(callback).__name__, "updates": max(updates)}


@contextmanager
def averaged_weights(trainer: L.Trainer, module: L.LightningModule) -> Iterator[None]:
    """Give the module its averaged weights, as in a validation; they are its own again afterwards.

    Where nothing is averaged, nothing happens.
    """
    callback = averaging_callback(trainer)
    if callback is None:
        yield
        return
    settle_averages(trainer, module)
    callback.on_validation_epoch_start(trainer, module)
    try:
        yield
    finally:
        callback.on_validation_epoch_end(trainer, module)


@torch.no_grad()
def settle_averages(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Bring averages up to date in what is no average.

    The average of no step yet is the module itself, not what it was when the run started.
    Buffers are statistics of the targets, measured once: an average would only round them.
    """
    for average in averages_of(trainer, module):
        pairs = list(zip(average.module.buffers(), module.buffers(), strict=True))
        if not int(average.n_averaged):
            pairs += zip(average.module.parameters(), module.parameters(), strict=True)
        for averaged, own in pairs:
            averaged.copy_(own)


class KeepAverages(L.Callback):
    """Keeps averages and a module's own weights apart; ``Distillation`` adds it to a Trainer."""

    def __init__(self) -> None:
        self._own: dict[str, Tensor] | None = None  # while no step can have changed them

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the weights of the last epoch's end."""
        del trainer, pl_module
        self._own = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Settle what is validated next."""
        settle_averages(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the weights: if training ends here, Lightning puts the average in their place.

        A checkpoint of a run that has ended early would have them no more, and could not continue
        exactly.
        """
        settle_averages(trainer, pl_module)
        self._own = {
            name: tensor.detach().to("cpu", copy=True)
            for name, tensor in pl_module.state_dict().items()
        }

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the weights that are trained, and an average that is settled; after Lightning."""
        if _OWN_WEIGHTS not in checkpoint:
            return
        own = checkpoint[_OWN_WEIGHTS] = self._own or checkpoint[_OWN_WEIGHTS]
        record = averaging_record(trainer, pl_module)
        if record is None:
            checkpoint["state_dict"] = own
            return
        checkpoint[AVERAGING_KEY] = record
        checkpoint["state_dict"] |= {name: own[name] for name, _ in pl_module.named_buffers()}
