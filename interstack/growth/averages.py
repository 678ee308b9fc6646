"""Averages of a module's weights that callbacks keep: they grow with the module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning as L
from torch.optim.swa_utils import AveragedModel

from interstack.growth.optimizer_state import parent_of
from interstack.growth.plan import GrowthPlan


def averages_of(trainer: L.Trainer, module: L.LightningModule) -> list[AveragedModel]:
    """Return the averages of a module that the Trainer's callbacks hold, whatever their class."""
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    held = (value for callback in callbacks for value in vars(callback).values())
    return [
        value
        for value in held
        if isinstance(value, AveragedModel) and type(value.module) is type(module)
    ]


def grow_averages(
    trainer: L.Trainer, module: L.LightningModule, plan: GrowthPlan, layer_prefix: str
) -> None:
    """Grow the averages of a module as it has grown itself.

    A clone's average is a copy of its parent's average. A fresh layer has no past: its average is
    that layer, as all ranks have it.

    Args:
        trainer: The run's.
        module: What has grown; its ranks agree on its weights.
        plan: The growth that it has gone through.
        layer_prefix: What the names of layers' parameters begin with, before the layer's number.
    """
    for average in averages_of(trainer, module):
        copied: Any = average.module
        copied.grow(replace(plan, fresh_clones=False))  # draws nothing: the run's stream goes on
        if plan.fresh_clones:
            clones = {
                name: tensor
                for name, tensor in module.state_dict().items()
                if parent_of(name, plan, layer_prefix)[1]
            }
            copied.load_state_dict(clones, strict=False)
