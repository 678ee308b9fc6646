"""Similarity of hidden states: linear centred kernel alignment of layers, on the same frames."""

from __future__ import annotations

from collections.abc import Sequence
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


@torch.no_grad()
def linear_cka(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the linear CKA of every pair of representations.

    ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) in Frobenius norms, of X and Y with each channel's mean taken off
    (Kornblith et al., arXiv 1905.00414, eq. 3 and section 3). 1 for representations that are the
    same up to rotation and scale, 0 where no channel of one correlates with any of the other.

    Args:
        first: Representations (frames, width); widths may differ, frames not.
        second: The same.

    Returns:
        (len(first), len(second)) float64.
    """
    left, right = ([_centred(each) for each in states] for states in (first, second))
    left_norms, right_norms = ([_norm(each, each) for each in states] for states in (left, right))
    rows = [
        torch.stack([_norm(x, y).square() for y in right]) / (norm * torch.stack(right_norms))
        for x, norm in zip(left, left_norms, strict=True)
    ]
    # a representation that is the same at every frame has the norm 0
    return torch.nan_to_num(torch.stack(rows), nan=0.0)


def _centred(states: Tensor) -> Tensor:
    exact = states.double()
    return exact - exact.mean(0)


def _norm(x: Tensor, y: Tensor) -> Tensor:
    """Return ‖YᵀX‖."""
    norm: Tensor = torch.linalg.matrix_norm(y.T @ x)
    return norm


_MOST_FRAMES: Final = 2000
"""Frames that are compared; more change little for layers a few hundred wide."""


class LayerSimilarity(NamedTuple):
    """Linear CKA of hidden states, of which 0 is the encoder's input.

    Attributes:
        student: Student's with each other, (depth + 1, depth + 1).
        teacher: Student's with the teacher's, (depth + 1, teacher's).
        teacher_layers: Indices of these hidden states of the teacher: all up to the deepest tap,
            or the taps alone where targets are cached.
    """

    student: Tensor
    teacher: Tensor
    teacher_layers: tuple[int, ...]

    def to_primitives(self) -> dict[str, Any]:
        """Return the maps as JSON can hold them."""
        return {
            "student": [[round(value, 4) for value in row] for row in self.student.tolist()],
            "teacher": [[round(value, 4) for value in row] for row in self.teacher.tolist()],
            "teacher_layers": list(self.teacher_layers),
        }


@torch.no_grad()
def measure_similarity(trainer: L.Trainer, module: Distillation) -> LayerSimilarity | None:
    """Return the similarity of layers on the first validation batch, the same at every stage.

    Nothing of the run is changed, and no other rank takes part.

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
        teacher_output, layers = _teacher_layers(module, moved)
        output, states = module.student_forward(moved, teacher_output)
    student = [_frames(each, output.mask) for each in output.hidden_states]
    teacher = [_frames(each, output.mask) for each in states]
    return LayerSimilarity(
        linear_cka(student, student).cpu(), linear_cka(student, teacher).cpu(), layers
    )


def _teacher_layers(module: Distillation, batch: Batch) -> tuple[TeacherOutput, tuple[int, ...]]:
    """Return the teacher's output with all its layers, or the cached ones, and their indices."""
    teacher = module.teacher
    if not isinstance(teacher, Teacher):
        return module.teacher_forward(batch), module.student.teacher_taps
    return module.teacher_forward(batch, every_layer=True), tuple(range(teacher.taps[-1] + 1))


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
    """Return the first valid frames of a batch, (frames, width)."""
    return states[mask][:_MOST_FRAMES]
