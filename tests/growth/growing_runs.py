"""Runs that grow, and what they leave behind: learning rates, optimizer states, checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from interstack.distillation.module import Distillation
from interstack.growth.plan import GrowthPlan
from tests.distillation.small_runs import fit, make_module, make_trainer, training_batches

NamedState = dict[str, dict[str, Tensor]]


def named_parameters(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The parameters of an optimizer that was made with names."""
    parameters: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        parameters |= zip(group["param_names"], group["params"], strict=True)
    return parameters


def named_state(optimizer: torch.optim.Optimizer) -> NamedState:
    """The state of every parameter that has one, as it is at this moment."""
    parameters = named_parameters(optimizer).items()
    return {
        name: copy.deepcopy(optimizer.state[each])
        for name, each in parameters
        if optimizer.state.get(each)
    }


def equal_states(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether moments and step counts are the same to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class Witness(L.Callback):
    """Notes every step's learning rate, and the optimizer's state around every growth.

    The rate is noted when the step is about to be made, where growth has lowered it.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.before: list[NamedState] = []
        self.after: list[NamedState] = []
        self.names: list[list[str]] = []

    def on_growth_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the old optimizer's state."""
        del pl_module
        self.before.append(named_state(trainer.optimizers[0]))

    def on_growth_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, plan: GrowthPlan
    ) -> None:
        """Note the new optimizer's state; no tensor of it belongs to two parameters."""
        del pl_module, plan
        optimizer = trainer.optimizers[0]
        tensors = [each for state in optimizer.state.values() for each in state.values()]
        assert len({each.data_ptr() for each in tensors}) == len(tensors)
        self.after.append(named_state(optimizer))
        self.names.append(list(named_parameters(optimizer)))

    def on_before_optimizer_step(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Note the rate that the step is made with."""
        del trainer, pl_module
        self.rates.append(optimizer.param_groups[0]["lr"])


class Saver(L.Callback):
    """Saves a checkpoint after every step, named for it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        """Save one."""
        trainer.save_checkpoint(self.directory / f"{trainer.global_step}.ckpt")


def train(
    teacher_directory: Path,
    *callbacks: L.Callback,
    depths: tuple[int, ...] = (2, 4),
    checkpoint: Path | None = None,
    module: Distillation | None = None,
    growth: dict[str, Any] | None = None,
    num_batches: int = 2,
    **settings: Any,  # noqa: ANN401, the Trainer's
) -> tuple[Distillation, Witness]:
    """Train on epochs of so many batches, from the start or from a checkpoint."""
    witness = Witness()
    module = module or make_module(teacher_directory)
    trainer = make_trainer(witness, *callbacks, depths=depths, growth=growth, **settings)
    fit(trainer, module, training_batches(num_batches), checkpoint)
    return module, witness
