"""The plan of a run: its steps are measured, and the run is predicted from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import ceil
from typing import Any

import lightning as L
import torch

from interstack.data.datamodule import SpeechDataModule
from interstack.data.global_batch import BatchSplit
from interstack.distillation.module import Distillation
from interstack.distillation.muon import newton_schulz_dtype
from interstack.distillation.optimizer import OptimizerKind
from interstack.errors import ConfigurationError
from interstack.growth.callback import InterleavedStacking
from interstack.growth.schedule import accumulated_batches, run_length
from interstack.models.flops import teacher_macs
from interstack.models.teacher import Teacher
from interstack.planning.costs import DepthCosts, student_costs
from interstack.planning.measure import Measurement, StepMeter
from interstack.planning.predict import Prediction, StageLength, measure_stages, predict
from interstack.planning.report import Plan
from interstack.utils.environment import describe_environment


def make_plan(
    trainer: L.Trainer,
    module: Distillation,
    datamodule: SpeechDataModule,
    growth: InterleavedStacking,
    *,
    world_size: int,
    seconds: float,
) -> Plan:
    """Measure a run's steps and predict the run.

    Args:
        trainer: On one device.
        module: Set up.
        datamodule: Set up.
        growth: The stages.
        world_size: Ranks that the run will have.
        seconds: How long to measure.

    Raises:
        ConfigurationError: If the stages don't fit the run.
        DataError: If the data can't be read.
    """
    run = run_length(trainer)
    schedule = growth.make_schedule(*run, trial=bool(vars(trainer).get("fast_dev_run")))
    depths = [stage.depth for stage in schedule.stages]
    batches = _epoch_batches(trainer, datamodule.num_training_batches(world_size))
    lengths = measure_stages(
        schedule, run, batches, lambda epoch: accumulated_batches(trainer, epoch)
    )
    epochs = sum(length.batches for length in lengths) / batches
    measurement = StepMeter(trainer, module, datamodule, growth, world_size).measure(seconds)
    prediction = predict(
        depths,
        lengths,
        measurement.splits,
        _savings(module, measurement),
        waits_seconds=epochs * measurement.epoch_wait,
    )
    validations = _validations(trainer, prediction, lengths, batches)
    seconds = _validation_seconds(trainer, datamodule, measurement, depths, validations, world_size)
    prediction = replace(prediction, validation_seconds=seconds)
    teacher = module.teacher
    audio = datamodule.mean_batch_seconds(world_size)
    clip = min(datamodule.longest_seconds("train"), audio or datamodule.batch_seconds)
    costs = tuple(
        student_costs(
            module.student_config,
            depth,
            module.student.config,
            len(teacher.taps),
            teacher.width,
            clip,
            module.optimizer_config.kind,
        )
        for depth in depths
    )
    device = trainer.strategy.root_device
    return Plan(
        costs,
        teacher_macs(teacher, clip) if isinstance(teacher, Teacher) else None,
        measurement,
        prediction,
        world_size,
        _splits(trainer, datamodule, world_size, ceil(epochs)),
        (
            *_remarks(measurement, clip, world_size),
            *_optimizer_remarks(module.optimizer_config.kind, costs, device),
        ),
        describe_environment(device, str(trainer.precision)),
    )


def _epoch_batches(trainer: L.Trainer, batches: int) -> int:
    """Return the batches of an epoch within the Trainer's limit."""
    limit = trainer.limit_train_batches
    kept = int(batches * limit) if isinstance(limit, float) else min(batches, int(limit or 0))
    if kept < 1:
        raise ConfigurationError(
            f"trainer.limit_train_batches {limit} leaves none of an epoch's {batches} batches"
        )
    return kept


def _splits(
    trainer: L.Trainer, datamodule: SpeechDataModule, world_size: int, epochs: int
) -> dict[int, BatchSplit]:
    """Return how a step's audio is divided, by the epoch from which on it is divided so."""
    if datamodule.split is not None:
        return {0: datamodule.split}
    splits: dict[int, BatchSplit] = {}
    last = 0
    for epoch in range(epochs):
        window = accumulated_batches(trainer, epoch)
        if window != last:
            seconds = window * world_size * datamodule.batch_seconds
            splits[epoch] = BatchSplit(seconds, world_size, window)
        last = window
    return splits


def _savings(module: Distillation, measurement: Measurement) -> dict[str, float]:
    """Return the seconds of a step that each alternative to the settings would save."""
    savings = {}
    split = measurement.splits[min(measurement.splits)]
    is_frozen = module.student.freeze_front_end
    other = module.student_config.front_end_source is not None
    can_share = module.teacher.takes_waveform and not is_frozen and not other
    is_live = isinstance(module.teacher, Teacher)
    if can_share:
        savings["front end shared"] = measurement.front_end_training
    if is_live:
        savings["targets cached"] = split.teacher + (
            split.front_end if is_frozen else measurement.teacher_front_end
        )
    if can_share and is_live:
        both = split.teacher + measurement.teacher_front_end + measurement.front_end_training
        savings["both"] = both
    return savings


def _validation_seconds(
    trainer: L.Trainer,
    datamodule: SpeechDataModule,
    measurement: Measurement,
    depths: list[int],
    validations: list[int],
    world_size: int,
) -> float:
    """Return the seconds of all validations: before and after each stage, and the Trainer's own.

    Args:
        trainer: The run's.
        datamodule: The run's.
        measurement: What was measured.
        depths: Of the stages.
        validations: The Trainer's own in each stage.
        world_size: Ranks.
    """
    audio = datamodule.report().get("validation/seconds")
    limit = trainer.limit_val_batches
    if audio is None or not limit:
        return 0.0
    batches = len(datamodule.val_dataloader())
    share = limit if isinstance(limit, float) else min(1.0, limit / batches)
    one = {
        depth: share * audio * rate / world_size + measurement.epoch_wait
        for depth, rate in measurement.validation_rates.items()
    }
    return sum((2 + own) * one[depth] for depth, own in zip(depths, validations, strict=True))


def _validations(
    trainer: L.Trainer,
    prediction: Prediction,
    lengths: Sequence[StageLength],
    epoch_batches: int,
) -> list[int]:
    """Return the Trainer's own validations in each stage."""
    every: float | None = vars(trainer).get("_val_check_time_interval")  # in seconds
    stages: list[float] = [stage.seconds for stage in prediction.stages]
    if every is None:
        every = _batches_between_validations(trainer, epoch_batches)
        stages = [length.batches for length in lengths]
    ends = [sum(stages[:number]) for number in range(len(stages) + 1)]
    return [
        int(end // every) - int(begin // every) if every else 0 for begin, end in pairwise(ends)
    ]


def _batches_between_validations(trainer: L.Trainer, epoch_batches: int) -> int:
    """Return the batches between two of the Trainer's validations; 0: there are none."""
    interval: Any = trainer.val_check_interval
    epochs = trainer.check_val_every_n_epoch
    if isinstance(interval, int) and not isinstance(interval, bool):
        return interval
    if epochs is None:
        return 0
    return max(1, int(epoch_batches * float(interval))) * epochs


def _remarks(measurement: Measurement, clip: float, world_size: int) -> tuple[str, ...]:
    remarks = [
        f"measured on {measurement.num_batches} batches with {measurement.padding:.1%} padding; "
        f"GMACs are of a forward pass on utterances of {clip:.1f} s",
        f"a step waits {1e3 * measurement.wait:.1f} ms for its batch; the rest of data is what "
        "decoding beside it takes from the processor",
    ]
    if measurement.dropout is not None:
        remarks.append(str(measurement.dropout))
    if world_size > 1:
        remarks.append(
            f"one device was measured, the run has {world_size}: their communication comes on top"
        )
    return tuple(remarks)


def _optimizer_remarks(
    kind: OptimizerKind, costs: Sequence[DepthCosts], device: torch.device
) -> tuple[str, ...]:
    """Return a remark about Muon's iteration, which AdamW has not."""
    if kind != "muon":
        return ()
    operations = f"{costs[0].optimizer_gigaflops:.3g}"
    if len(costs) > 1:
        operations += f" to {costs[-1].optimizer_gigaflops:.3g}"
    dtype = str(newton_schulz_dtype(device)).removeprefix("torch.")
    return (
        f"Muon's iteration takes {operations} GFLOPs a step, however much audio it holds, in "
        f"{dtype} on this device",
    )
