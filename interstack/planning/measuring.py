"""Where an optimizer step's time goes: on this machine, with the run's own batches."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import lightning as L

from interstack.constants import SAMPLE_RATE
from interstack.data.batch import Batch
from interstack.data.datamodule import SpeechDataModule
from interstack.distillation.module import Distillation
from interstack.growth.callback import InterleavedStacking
from interstack.growth.operators import plan_growth
from interstack.planning.prediction import StepSplit
from interstack.planning.timed_step import TimedStep

_WAITS: Final = 6
"""Batches that are asked for in a row to see whether the model waits for them."""


@dataclass(frozen=True)
class Measurement:
    """What was measured.

    Attributes:
        splits: For each depth, an epoch's mean step.
        epoch_wait: Seconds until an epoch's first batch is there.
        front_end_training: Seconds of a step that sharing the front end would save.
        teacher_front_end: Seconds of a step in the teacher's front end.
        validation_rates: For each depth, seconds that validating a second of audio takes.
        num_batches: Batches that all depths were measured on.
        padding: Share of padding in them.
    """

    splits: dict[int, StepSplit]
    epoch_wait: float
    front_end_training: float
    teacher_front_end: float
    validation_rates: dict[int, float]
    num_batches: int
    padding: float


class StepMeter:
    """Measures the steps of a run at all of its depths.

    Every batch goes through every depth before the next one comes, so that neither the batches nor
    the drift of a busy machine favours one of them.

    Args:
        trainer: Says number format and device, and how gradients are clipped.
        module: Set up, at the first stage's depth.
        datamodule: Set up.
        growth: Grows copies of the student.
        world_size: Ranks of the run, among which an epoch's batches are shared out.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        module: Distillation,
        datamodule: SpeechDataModule,
        growth: InterleavedStacking,
        world_size: int,
    ) -> None:
        self.datamodule = datamodule
        self.world_size = world_size
        device = trainer.strategy.root_device
        module.teacher.to(device)
        self._steps = [TimedStep(trainer, each.to(device)) for each in grown(module, growth)]

    def measure(self, seconds: float) -> Measurement:
        """Measure for about so many seconds, and on two batches at least."""
        begin = time.perf_counter()
        batches = self._batches()
        first = next(batches)
        epoch_wait = time.perf_counter() - begin
        for step in self._steps:
            step.run(first)  # the first time is slower
        wait = self._wait(batches)
        rates = self._validation_rates()
        measured: list[tuple[Batch, list[StepSplit], tuple[float, float]]] = []
        while len(measured) < 2 or time.perf_counter() - begin < seconds:
            batch = next(batches)
            front_ends = self._steps[0].front_ends(batch)
            splits = [step.run(batch, front_ends) for step in self._steps]
            training = self._steps[0].front_end_training(batch)
            measured.append((batch, splits, (training, front_ends[0])))
        del batches
        return self._summarise(measured, wait, epoch_wait, rates)

    def _batches(self) -> Iterator[Batch]:
        """Yield training batches without end."""
        while True:
            yield from self.datamodule.train_dataloader()

    def _wait(self, batches: Iterator[Batch]) -> float:
        """Return what the shallowest student, the fastest, waits for a batch."""
        waits = []
        for _ in range(_WAITS):
            begin = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - begin)
            self._steps[0].run(batch)
        return median(waits)

    def _validation_rates(self) -> dict[int, float]:
        """Measure a validation batch at every depth."""
        loader = iter(self.datamodule.val_dataloader())
        batch = next(loader)
        del loader
        seconds = float(batch.seconds)
        self._steps[-1].validate(batch)  # the first time is slower
        return {step.depth: step.validate(batch) / seconds for step in self._steps}

    def _summarise(
        self,
        measured: Sequence[tuple[Batch, list[StepSplit], tuple[float, float]]],
        wait: float,
        epoch_wait: float,
        rates: dict[int, float],
    ) -> Measurement:
        padded = [_padded_seconds(batch) for batch, _, _ in measured]
        valid = sum(float(batch.seconds) for batch, _, _ in measured)
        # A step's time goes with its padded audio; the sample's batches need not be the epoch's.
        mean = self.datamodule.mean_batch_seconds(self.world_size)
        scale = (mean * len(padded) if mean is not None else sum(padded)) / sum(padded)
        scale /= len(padded)
        parts = StepSplit._fields
        splits = {}
        for place, step in enumerate(self._steps):
            sums = {
                part: scale * sum(getattr(row[place], part) for _, row, _ in measured)
                for part in parts
            }
            split = StepSplit(**sums)
            splits[step.depth] = split._replace(data=split.data + wait)
        training, of_teacher = (
            scale * sum(times[place] for _, _, times in measured) for place in range(2)
        )
        padding = 1 - valid / sum(padded)
        return Measurement(splits, epoch_wait, training, of_teacher, rates, len(measured), padding)


def grown(module: Distillation, growth: InterleavedStacking) -> Iterator[Distillation]:
    """Yield a module of every stage's depth; they share the teacher.

    Args:
        module: Of the first stage's depth; it is left as it is.
        growth: Says depths and operator.
    """
    for depth in growth.depths:
        shared = [module.teacher, module._trainer]
        module = copy.deepcopy(module, {id(each): each for each in shared})
        if depth > module.depth:
            module.grow(plan_growth(growth.operator, module.lineage, depth))
        yield module


def _padded_seconds(batch: Batch) -> float:
    """Return what a batch's model computes on: utterances × longest."""
    return len(batch.ids) * int(batch.num_samples.max()) / SAMPLE_RATE
