"""Optimizer steps, and timing them in turns so that a machine's drift cancels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.materials import Materials
from benchmarks.variants import Cell, Setting
from interstack.distillation.module import Distillation
from interstack.distillation.reduction import rank_loss

_COMPILING_STEPS: Final = 2
"""Until everything is compiled: the optimizer's state is there only after the first."""


class Step:
    """Takes steps of one setting.

    Args:
        materials: What they are made of.
        setting: How they are computed.
        module: What is trained; others may train it too, in turns.
        optimizer: Its optimizer.
    """

    def __init__(
        self,
        materials: Materials,
        setting: Setting,
        module: Distillation,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.materials = materials
        self.setting = setting
        self.module = module
        self.optimizer = optimizer

    def take(self) -> None:
        """Read, move and learn from one batch, as a training run does."""
        module, device = self.module, self.materials.device
        module._teacher = [self.materials.teller(self.setting)]
        batch = module.transfer_batch_to_device(self.materials.batch(self.setting), device, 0)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.setting.bf16):
            sums = module.batch_loss(batch).sums
            loss = rank_loss(sums, module.objective, 1)
        loss.to_minimise.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def __call__(self) -> float:
        """Take a step and return its seconds."""
        return timed(self.take, self.materials.device)

    def warm_up(self) -> int:
        """Take the first steps, which are slower, and return the operations of one.

        Returns:
            Floating-point operations of convolutions, attention and matrix products, forward and
            backward; 0 for compiled layers, whose operations can't be seen.
        """
        if self.setting.compiled:
            for _ in range(_COMPILING_STEPS):
                self.take()
            return 0
        with FlopCounterMode(display=False) as counter:
            self.take()
        return int(counter.get_total_flops())


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Do some work and return its seconds, until the device is done with it."""
    _wait(device)
    begin = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_steps(materials: Materials, cells: Sequence[Cell]) -> list[Step]:
    """Make the steps; those that train alike students train the same one, to save memory."""
    students: dict[tuple[object, ...], tuple[Distillation, torch.optim.Optimizer]] = {}
    steps = []
    for cell in cells:
        setting = cell.setting
        alike = (setting.front_end, cell.depth, setting.compiled, setting.dropout)
        if alike not in students:
            module = materials.module(cell.setting, cell.depth)
            students[alike] = module, module.configure_optimizers()
        steps.append(Step(materials, cell.setting, *students[alike]))
    return steps


def time_in_turns(
    steps: Sequence[Callable[[], float]], repetitions: int, tell: Callable[[int], object]
) -> list[list[float]]:
    """Time every step once a repetition, in turns, back and forth.

    A machine that slows down evenly so favours none of them over two repetitions.

    Args:
        steps: Each takes a step and returns its seconds.
        repetitions: How often.
        tell: Called after each repetition with its number, from 1.

    Returns:
        For each of the steps, its seconds in every repetition.
    """
    seconds: list[list[float]] = [[] for _ in steps]
    for repetition in range(repetitions):
        order = range(len(steps))
        for place in order if repetition % 2 == 0 else reversed(order):
            seconds[place].append(steps[place]())
        tell(repetition + 1)
    return seconds
