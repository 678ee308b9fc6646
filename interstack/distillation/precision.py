"""The number formats in which a student can be trained, and whether they compute rightly here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import lightning as L
import torch
import torch.distributed
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from interstack.data.batch import Batch
from interstack.data.datamodule import SpeechDataModule
from interstack.data.dataset import first_utterances
from interstack.errors import ConfigurationError, InterstackError
from interstack.models.precision import (
    NO_TF32,
    SWITCH_OFF,
    PrecisionReport,
    compare_with_float32,
    device_format,
    number_format,
)
from interstack.models.student import Student
from interstack.models.teacher import Teacher, check_teacher, require_teacher
from interstack.settings import check_effect

if TYPE_CHECKING:
    from interstack.distillation.module import Distillation


log = logging.getLogger(__name__)

PRECISIONS: Final = ("32-true", "bf16-mixed", "16-mixed")


def check_precision(precision: str) -> None:
    """Refuse number formats in which the weights are not fp32.

    Args:
        precision: The Trainer's ``precision`` in full.

    Raises:
        ConfigurationError: For the true 16-bit formats among others. A bf16 weight swallows every
            update below 1/512 of it, as most of AdamW's are; its moments are cut short likewise.
    """
    if precision not in PRECISIONS:
        raise ConfigurationError(
            f"trainer.precision {precision} does not keep weights and AdamW's moments in fp32, and "
            "in 16 bits most updates are rounded away: give one of "
            f"{', '.join(PRECISIONS)}; model.teacher.dtype may be bfloat16 with any of them"
        )


def check_precision_option(trainer: L.Trainer, module: Distillation, *, cached: bool) -> None:
    """Refuse to switch a check off that would not be made: where all is computed in float32.

    Args:
        trainer: The run's.
        module: Not set up.
        cached: Whether targets are cached. The same configuration has made the cache then, and its
            own number format is checked.

    Raises:
        ConfigurationError: In that case.
    """
    precision, teacher = str(trainer.precision), module.teacher_config.dtype
    on_device = device_format(trainer.strategy.root_device)
    if not cached and (precision, teacher, on_device) == ("32-true", "float32", "float32"):
        check_effect(
            "model.precision_check",
            module.precision_check,
            True,
            "where trainer.precision, model.teacher.dtype and the device are all float32",
        )


_AUTOCAST: Final = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}


def check_computation(trainer: L.Trainer, module: Distillation) -> list[PrecisionReport]:
    """Compare student and teacher with float32 on one batch of the run's own speech.

    Neither random states nor the loaders' positions change. Where everything is float32 nothing is
    computed. Every rank has to call it, and all of them stop if one computes wrongly.

    Args:
        trainer: A Trainer that is about to fit.
        module: With student and teacher on the device.

    Returns:
        What was found of each model that is not in float32, the worst of all ranks.

    Raises:
        PrecisionError: If an error is more than rounding.
        DataError: If the batch can't be read.
    """
    device = module.device
    teacher = module.teacher if isinstance(module.teacher, Teacher) else None
    student_format = _student_format(trainer, module)
    teacher_format = "float32" if teacher is None else number_format(teacher, device)
    if student_format == teacher_format == "float32":
        return []
    # An error is passed on to the other ranks instead of raised: they would wait for ever.
    found: list[PrecisionReport] | InterstackError
    try:
        batch = _sample(trainer)
        found = [] if batch is None else _reports(trainer, module, batch)
    except InterstackError as error:
        found = error
    reports = _worst_of_ranks(found, trainer.world_size)
    for report in reports:
        if trainer.is_global_zero:
            log.info("%s", report)
        if report.model == "student":
            is_mixed = str(trainer.precision) in _AUTOCAST
            fix = "give trainer.precision 32-true" if is_mixed else NO_TF32
            report.require(f"trainer.precision {trainer.precision}", f"{fix}, {SWITCH_OFF}")
        else:
            require_teacher(report, module.teacher_config.dtype)
    return reports


def _student_format(trainer: L.Trainer, module: Distillation) -> str:
    mixed = _AUTOCAST.get(str(trainer.precision))
    if mixed is None:
        return number_format(module.student, module.device)
    plugin: Any = trainer.precision_plugin
    # Lightning's 16-mixed on a CPU is bfloat16
    is_half = mixed == "float16" and module.device.type == "cpu" and plugin.scaler is None
    return "bfloat16" if is_half else mixed


def _reports(trainer: L.Trainer, module: Distillation, batch: Batch) -> list[PrecisionReport]:
    """Compare what is not in float32 on this rank."""
    batch = trainer.strategy.batch_to_device(batch)
    device, reports = module.device, []
    if isinstance(module.teacher, Teacher) and number_format(module.teacher, device) != "float32":
        reports.append(check_teacher(module.teacher, batch.waveforms, batch.num_samples))
    format = _student_format(trainer, module)
    if format != "float32":
        features = None
        if module.student.freeze_front_end:
            with torch.no_grad():
                features = module.teacher_forward(batch).features

        def run(student: Student) -> Sequence[Tensor]:
            output = student(batch.waveforms, batch.num_samples, features)
            return (*output.hidden_states, *output.predictions)

        reports.append(
            compare_with_float32(
                module.student,
                run,
                device,
                name="student",
                format=format,
                label=str(trainer.precision) if str(trainer.precision) in _AUTOCAST else format,
                context=trainer.precision_plugin.val_step_context,
            )
        )
    return reports


def _worst_of_ranks(
    mine: list[PrecisionReport] | InterstackError, world_size: int
) -> list[PrecisionReport]:
    """Return for each model the rank's report that is worst, the same on all ranks.

    Raises:
        InterstackError: If it was raised on any rank.
    """
    everyone: list[Any] = [mine]
    if world_size > 1:
        everyone = [None] * world_size
        torch.distributed.all_gather_object(everyone, mine)
    for each in everyone:
        if isinstance(each, InterstackError):
            raise each
    return [max(ranks, key=lambda report: report.error) for ranks in zip(*everyone, strict=True)]


def _sample(trainer: L.Trainer) -> Batch | None:
    """Return a small batch of validation or training data, the same on all ranks; None: none.

    Raises:
        DataError: If audio can't be read.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    validates = trainer.enable_validation
    if isinstance(datamodule, SpeechDataModule):
        if validates:
            return first_utterances(datamodule, "validation", None)
        return first_utterances(datamodule, "train", 0)
    with isolate_rng():  # a loader that shuffles draws a number
        if validates:
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
            loaders = CombinedLoader(trainer.val_dataloaders, "sequential")
        else:
            trainer.fit_loop.setup_data()
            loaders = CombinedLoader(trainer.train_dataloader, "sequential")
            if hasattr(trainer.train_dataloader, "load_state_dict"):
                log.warning("precision is not checked: the training loader would lose its position")
                return None
        batch: Batch | None = next(iter(loaders), (None,))[0]
    if batch is None or batch.targets is not None:
        return batch
    rows = slice(0, 2)
    return Batch(batch.waveforms[rows], batch.num_samples[rows], batch.ids[rows])
