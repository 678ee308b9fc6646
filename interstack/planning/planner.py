"""From a described run to its plan."""

from __future__ import annotations

from collections.abc import Sequence
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
from interstack.growth.progress import run_length
from interstack.models.teacher import Teacher
from interstack.planning.costs import DepthCosts, student_costs, teacher_gigamacs
from interstack.planning.measuring import Measurement, StepMeter
from interstack.planning.prediction import predict, share_steps
from interstack.planning.report import Plan
from interstack.surroundings import surroundings


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
    length = run_length(trainer)
    batches = _epoch_batches(trainer, datamodule.num_training_batches(world_size))
    window = trainer.accumulate_grad_batches
    steps_an_epoch = -(-batches // window)
    total = int(length.total if length.unit == "steps" else length.total * steps_an_epoch)
    stages = growth.make_schedule(*length).stages
    steps = share_steps([stage.end - stage.start for stage in stages], total)
    depths = [stage.depth for stage in stages]
    measurement = StepMeter(trainer, module, datamodule, growth, world_size).measure(seconds)
    epochs = total / steps_an_epoch
    prediction = predict(
        depths,
        steps,
        {
            depth: window * (split.step - split.optimizer) + split.optimizer
            for depth, split in measurement.splits.items()
        },
        {name: window * saved for name, saved in _savings(module, measurement).items()},
        waits_seconds=epochs * measurement.epoch_wait,
        validation_seconds=_validation_seconds(
            trainer, datamodule, measurement, depths, steps, steps_an_epoch, world_size
        ),
    )
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
        teacher_gigamacs(teacher.config, teacher.taps[-1], clip, pad_to_30s=teacher.pad_to_30s)
        if isinstance(teacher, Teacher)
        else None,
        measurement,
        prediction,
        world_size,
        datamodule.split
        or BatchSplit(window * world_size * datamodule.batch_seconds, world_size, window),
        (
            *_remarks(measurement, clip, world_size),
            *_optimizer_remarks(module.optimizer_config.kind, costs, device),
        ),
        surroundings(device, str(trainer.precision)),
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


def _savings(module: Distillation, measurement: Measurement) -> dict[str, float]:
    """Return what each lever that is not pulled yet would take off a step."""
    savings = {}
    split = measurement.splits[min(measurement.splits)]
    shares = module.student.freeze_front_end
    other = module.student_config.front_end_source is not None
    can_share = module.teacher.takes_waveform and not shares and not other
    is_live = isinstance(module.teacher, Teacher)
    if can_share:
        savings["front end shared"] = measurement.front_end_training
    if is_live:
        savings["targets cached"] = split.teacher + (
            split.front_end if shares else measurement.teacher_front_end
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
    steps: list[int],
    steps_an_epoch: int,
    world_size: int,
) -> float:
    """Return what all validations take: before and after each stage, and the Trainer's own."""
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
    every = _steps_between_validations(trainer, steps_an_epoch)
    done, total = 0, 0.0
    for depth, number in zip(depths, steps, strict=True):
        own = (done + number) // every - done // every if every else 0
        total += (2 + own) * one[depth]
        done += number
    return total


def _steps_between_validations(trainer: L.Trainer, steps_an_epoch: int) -> int:
    """Return the steps between two of the Trainer's validations; 0: there are none."""
    interval: Any = trainer.val_check_interval
    epochs = trainer.check_val_every_n_epoch
    if isinstance(interval, int) and not isinstance(interval, bool):
        return max(1, interval // trainer.accumulate_grad_batches)
    if epochs is None:
        return 0
    return max(1, int(steps_an_epoch * float(interval))) * epochs


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
            f"one device was measured, the run has {world_size}: what they tell each other "
            "comes on top"
        )
    return tuple(remarks)


def _optimizer_remarks(
    kind: OptimizerKind, costs: Sequence[DepthCosts], device: torch.device
) -> tuple[str, ...]:
    """Say what Muon's iteration takes; AdamW has nothing of the kind."""
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
