"""Averages of a module's weights that callbacks keep: they grow with the module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning as L
from torch.optim.swa_utils import AveragedModel

from interstack.growth.plan import GrowthPlan
from interstack.growth.surgery import find_layers, grow_at


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
    trainer: L.Trainer, module: L.LightningModule, path: str, plan: GrowthPlan
) -> None:
    """Grow the averages of a module as it has grown itself.

    A clone's average is a copy of its parent's average. A fresh layer has no past: its average is
    that layer, as all ranks have it.

    Args:
        trainer: The run's.
        module: What has grown; its ranks agree on its weights.
        path: Dotted path of the layers that have grown.
        plan: The growth step.
    """
    for average in averages_of(trainer, module):
        copied: Any = average.module
        grow_at(copied, path, replace(plan, fresh_clones=False))  # draws nothing
        for index in range(plan.depth) if plan.fresh_clones else ():
            if plan.is_clone(index):
                fresh = find_layers(module, path)[index].state_dict()
                find_layers(copied, path)[index].load_state_dict(fresh)
