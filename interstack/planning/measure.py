"""The time of an optimizer step at every depth: on this machine, with the run's own batches."""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final, NamedTuple

import lightning as L

from interstack.constants import SAMPLE_RATE
from interstack.data.batch import Batch
from interstack.data.datamodule import SpeechDataModule
from interstack.distillation.module import Distillation
from interstack.growth.callback import InterleavedStacking
from interstack.growth.operators import plan_growth
from interstack.planning.dropout import DropoutCosts, DropoutMeter
from interstack.planning.predict import StepSplit
from interstack.planning.timed_step import TimedStep

_PACE_SHARE: Final = 0.6
"""Share of the time for steps as the run takes them; the rest is for steps timed part by part."""

_PREFETCHED: Final = 2
"""Batches that torch's DataLoader keeps ready for each worker."""


class _Pace(NamedTuple):
    """A step as the run takes it, while the workers decode.

    Attributes:
        stage: Index of the stage whose depth it has.
        padded: Seconds of padded audio.
        wait: Seconds until the batch was there.
        seconds: Of the whole step, the wait included.
    """

    stage: int
    padded: float
    wait: float
    seconds: float


@dataclass(frozen=True)
class Measurement:
    """Times of a run's steps.

    Attributes:
        splits: For each depth, an epoch's mean step.
        wait: Seconds that a step waits for its batch, on average.
        epoch_wait: Seconds until an epoch's first batch is there.
        front_end_training: Seconds of a step in a front end of the student's own that is trained.
        teacher_front_end: Seconds of a step in the teacher's front end.
        validation_rates: For each depth, seconds of validation for a second of audio.
        num_batches: Batches on which all depths were timed part by part.
        padding: Share of padding in them.
        dropout: The cost of dropout at the last depth; None where there is none.
    """

    splits: dict[int, StepSplit]
    wait: float
    epoch_wait: float
    front_end_training: float
    teacher_front_end: float
    validation_rates: dict[int, float]
    num_batches: int
    padding: float
    dropout: DropoutCosts | None


class StepMeter:
    """Measures the steps of a run at all of its depths.

    First, depths take turns on fresh batches, as fast as the loader yields them: that is the run's
    pace, with workers that decode beside the step and take processor time from it. Then the loader
    stops, and every batch goes through all depths, timed part by part; neither the batches nor the
    drift of a busy machine favours a depth. The difference of both is the cost of data.

    Args:
        trainer: Has number format and device, and how gradients are clipped.
        module: Set up, at the first stage's depth.
        datamodule: Set up.
        growth: Has depths and operator.
        world_size: Ranks of the run, among which an epoch's batches are divided.
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
        self._steps = []
        for each in grown(module, growth):
            each.to(device).compile_models()
            self._steps.append(TimedStep(trainer, each))
        self._dropout = DropoutMeter(self._steps[-1])

    def measure(self, seconds: float) -> Measurement:
        """Measure for some seconds, and on two batches at least; layers are compiled before."""
        begin = time.perf_counter()
        batches = self._batches()
        first, _ = next(batches)
        epoch_wait = time.perf_counter() - begin
        for step in self._steps:
            step.run(first)  # the first time is slower
        self._dropout.warm_up(first)
        begin = time.perf_counter()
        rates = self._validation_rates()
        paces, kept = self._pace(batches, begin + _PACE_SHARE * seconds)
        batches.close()  # ends the workers, which would take processor time from the steps
        measured: list[tuple[Batch, list[StepSplit], tuple[float, float]]] = []
        for batch in kept:
            if len(measured) >= 2 and time.perf_counter() - begin >= seconds:
                break
            splits = [step.run(batch) for step in self._steps]
            trained = self._steps[0].trained_front_end(batch)
            self._dropout.measure(batch)
            measured.append((batch, splits, trained))
        return self._summarise(measured, paces, epoch_wait, rates)

    def _batches(self) -> Generator[tuple[Batch, bool]]:
        """Yield training batches without end, and whether each is the first of an epoch."""
        while True:
            for number, batch in enumerate(self.datamodule.train_dataloader()):
                yield batch, number == 0

    def _pace(
        self, batches: Generator[tuple[Batch, bool]], until: float
    ) -> tuple[list[_Pace], list[Batch]]:
        """Take steps as the run does, two at every depth at least; return them and some batches."""
        for _ in range(_PREFETCHED * self.datamodule.num_workers):
            self._steps[0].run(next(batches)[0])  # decoded ahead: they cost less than later ones
        paces: list[_Pace] = []
        kept: list[Batch] = []
        while len(paces) < 2 * len(self._steps) or time.perf_counter() < until:
            stage = len(paces) % len(self._steps)
            begin = time.perf_counter()
            batch, starts_epoch = next(batches)
            wait = time.perf_counter() - begin
            self._steps[stage].run(batch)
            seconds = time.perf_counter() - begin
            if starts_epoch:  # its wait is the epoch's, which is measured
                continue
            paces.append(_Pace(stage, _padded_seconds(batch), wait, seconds))
            kept.append(batch)
        return paces, kept

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
        paces: Sequence[_Pace],
        epoch_wait: float,
        rates: dict[int, float],
    ) -> Measurement:
        padded = [_padded_seconds(batch) for batch, _, _ in measured]
        valid = sum(float(batch.seconds) for batch, _, _ in measured)
        # A step's time goes with its padded audio; the sample's batches need not be the epoch's.
        mean = self.datamodule.mean_batch_seconds(self.world_size)
        batch_seconds = mean if mean is not None else fmean(padded)
        scale = batch_seconds / sum(padded)
        wait = batch_seconds * sum(each.wait for each in paces) / sum(each.padded for each in paces)
        parts = StepSplit._fields
        splits = {}
        for stage, step in enumerate(self._steps):
            sums = {
                part: scale * sum(getattr(row[stage], part) for _, row, _ in measured)
                for part in parts
            }
            split = StepSplit(**sums)
            own = [each for each in paces if each.stage == stage]
            pace = batch_seconds * sum(each.seconds for each in own)
            pace /= sum(each.padded for each in own)
            data = split.data + max(wait, pace - split.step)
            splits[step.depth] = split._replace(data=data)
        forward, backward = (
            scale * sum(trained[part] for _, _, trained in measured) for part in range(2)
        )
        padding = 1 - valid / sum(padded)
        return Measurement(
            splits,
            wait,
            epoch_wait,
            forward + backward,
            max(0.0, splits[self._steps[0].depth].front_end - forward),
            rates,
            len(measured),
            padding,
            self._dropout.costs(scale, splits[self._steps[-1].depth].step),
        )


def grown(module: Distillation, growth: InterleavedStacking) -> Iterator[Distillation]:
    """Yield a module of every stage's depth; they share the teacher.

    Args:
        module: Of the first stage's depth; it is not changed.
        growth: Has depths and operator.
    """
    for depth in growth.depths:
        module = copy_of(module)
        if depth > module.depth:
            module.grow(plan_growth(growth.operator, module.lineage, depth))
        yield module


def copy_of(module: Distillation) -> Distillation:
    """Return a copy of a module that shares the teacher."""
    shared = [module.teacher, module._trainer]
    return copy.deepcopy(module, {id(each): each for each in shared})


def _padded_seconds(batch: Batch) -> float:
    """Return the padded audio of a batch, in seconds."""
    return len(batch.ids) * int(batch.num_samples.max()) / SAMPLE_RATE
