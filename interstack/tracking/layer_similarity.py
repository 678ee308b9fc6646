"""The similarity map of a student's layers, to each other and to its teacher's."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from interstack.data.batch import Batch
from interstack.distillation.averaging import averaged_weights
from interstack.distillation.module import Distillation
from interstack.models.precision import evaluating
from interstack.models.teacher import Teacher, TeacherOutput
from interstack.tracking.similarity import linear_cka

_MOST_FRAMES: Final = 2000
"""Frames that are compared; more tell little more of layers a few hundred wide."""


class LayerSimilarity(NamedTuple):
    """Linear CKA of hidden states, of which 0 is the encoder's input.

    Attributes:
        student: Student's with each other, (depth + 1, depth + 1).
        teacher: Student's with the teacher's, (depth + 1, teacher's).
        teacher_layers: Which hidden states of the teacher those are: all up to the deepest tap, or
            the taps alone where targets are cached.
    """

    student: Tensor
    teacher: Tensor
    teacher_layers: tuple[int, ...]

    def to_primitives(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "student": [[round(value, 4) for value in row] for row in self.student.tolist()],
            "teacher": [[round(value, 4) for value in row] for row in self.teacher.tolist()],
            "teacher_layers": list(self.teacher_layers),
        }


@torch.no_grad()
def measure_similarity(trainer: L.Trainer, module: Distillation) -> LayerSimilarity | None:
    """Compare layers on the first validation batch, the same one at every stage.

    Nothing of the run is changed, and no other rank is asked.

    Returns:
        The maps; None where the Trainer has nothing to validate on.
    """
    batch = _first_validation_batch(trainer)
    if batch is None:
        return None
    precision, strategy = trainer.precision_plugin, trainer.strategy
    with (
        isolate_rng(),
        averaged_weights(trainer, module),
        evaluating(module),
        precision.val_step_context(),
    ):
        moved = strategy.batch_to_device(precision.convert_input(batch))
        told, layers = _ask_every_layer(module, moved)
        output, states = module.study(moved, told)
    student = [_frames(each, output.mask) for each in output.hidden_states]
    teacher = [_frames(each, output.mask) for each in states]
    return LayerSimilarity(
        linear_cka(student, student).cpu(), linear_cka(student, teacher).cpu(), layers
    )


def _ask_every_layer(module: Distillation, batch: Batch) -> tuple[TeacherOutput, tuple[int, ...]]:
    """Return what the teacher says of a batch at all its layers, or what is cached of that."""
    teacher = module.teacher
    if not isinstance(teacher, Teacher):
        return module.tell(batch), module.student.teacher_taps
    return module.tell(batch, every_layer=True), tuple(range(teacher.taps[-1] + 1))


def _first_validation_batch(trainer: L.Trainer) -> Batch | None:
    if not trainer.enable_validation:
        return None
    trainer.fit_loop.epoch_loop.val_loop.setup_data()  # loads them once, as validation does
    batches: Any = CombinedLoader(trainer.val_dataloaders, "sequential")
    batches.limits = trainer.num_val_batches
    for batch, _, _ in batches:
        found: Batch = batch
        return found
    return None


def _frames(states: Tensor, mask: Tensor) -> Tensor:
    """Return valid frames, (frames, width), from the batch's beginning on."""
    return states[mask][:_MOST_FRAMES]
