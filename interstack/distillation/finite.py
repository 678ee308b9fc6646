"""What is not finite in a batch, and in which of its utterances."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from interstack.data.batch import Batch
from interstack.distillation.objective import TapSums
from interstack.models.student import StudentOutput
from interstack.models.teacher import overflow_fix


class NumberFormats(NamedTuple):
    """What a loss is computed with, which decides how an overflow can be helped.

    Attributes:
        teacher: ``model.teacher.dtype``.
        student: ``trainer.precision``.
        target_norm: ``model.objective.target_norm``.
    """

    teacher: str
    student: str
    target_norm: str

    def fix(self, whose: str) -> str:
        """Return what to do where the ``audio``, ``target`` or ``prediction`` is not finite."""
        if whose == "audio":
            return "repair these files, or leave them out"
        if whose == "target":
            return overflow_fix(self.teacher)
        narrow = self.student == "16-mixed"
        other = ", or give trainer.precision bf16-mixed or 32-true" if narrow else ""
        return f"the student has diverged: lower model.optimizer.learning_rate{other}"

    @property
    def overflow_fix(self) -> str:
        """What to do where the loss alone is not finite."""
        if self.target_norm == "layer_norm":
            return "the student has diverged: lower model.optimizer.learning_rate"
        return "set model.objective.target_norm to layer_norm"


class BatchLoss(NamedTuple):
    """The sums that the loss of a batch is made of, with what they were made of themselves.

    Attributes:
        sums: The loss's sums.
        targets: The teacher's hidden states before their normalisation, one tensor a tap.
        output: The student's output.
        batch: The batch.
        formats: What it was computed with.
    """

    sums: TapSums
    targets: tuple[Tensor, ...]
    output: StudentOutput
    batch: Batch
    formats: NumberFormats

    @property
    def is_finite(self) -> bool:
        """Whether the sums are; reading it waits for the device."""
        return bool(torch.isfinite(self.sums.by_tap).all())

    def fault(self, where: str) -> str:
        """Say which utterances' audio, or else target, or else prediction, is not finite.

        Only for a batch that is not finite: whatever is fine otherwise overflows in the loss.

        Args:
            where: Which batch it is, to begin the sentence with.
        """
        padding = ~self.output.mask[..., None]
        past_end = torch.arange(self.batch.waveforms.shape[1], device=padding.device)
        silence = past_end >= self.batch.num_samples[:, None]
        suspects = {
            "audio": (self.batch.waveforms.masked_fill(silence, 0.0),),
            "target": (target.masked_fill(padding, 0.0) for target in self.targets),
            "prediction": (each.masked_fill(padding, 0.0) for each in self.output.predictions),
        }
        for whose, tensors in suspects.items():
            bad = torch.stack([~torch.isfinite(each).flatten(1).all(1) for each in tensors]).any(0)
            if bad.any():
                names = [
                    name
                    for name, is_bad in zip(self.batch.ids, bad.tolist(), strict=True)
                    if is_bad
                ]
                fix = self.formats.fix(whose)
                return f"{where}: the {whose} of {', '.join(names)} is not finite: {fix}"
        return (
            f"{where}: the loss of {', '.join(self.batch.ids)} overflows although targets and "
            f"predictions are finite: {self.formats.overflow_fix}"
        )
