"""Stop a run whose targets or loss are no longer finite, and say which utterances did it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interstack.data.batch import Batch
from interstack.distillation.objective import TapSums
from interstack.errors import DataError
from interstack.models.student import StudentOutput


def check_finite(
    sums: TapSums, targets: Sequence[Tensor], output: StudentOutput, batch: Batch
) -> None:
    """Raise where a batch's loss is not finite, before it reaches the weights.

    Args:
        sums: The loss's sums.
        targets: The teacher's hidden states, one tensor a tap.
        output: The student's output.
        batch: The batch, for the utterances' names.

    Raises:
        DataError: With the names of the utterances whose target, or else prediction, is not finite.
    """
    if bool(torch.isfinite(sums.by_tap).all()):
        return
    for whose, tensors in (("target", targets), ("prediction", output.predictions)):
        bad = [_not_finite(tensor, output.mask) for tensor in tensors]
        names = [name for row, name in enumerate(batch.ids) if any(bool(b[row]) for b in bad)]
        if names:
            raise DataError(
                f"the {whose} of {', '.join(names)} is not finite. "
                + (
                    "The teacher overflows there: give model.teacher.dtype float32 or bfloat16, or "
                    "leave these utterances out."
                    if whose == "target"
                    else "The student has diverged: lower model.optimizer.learning_rate, or train "
                    "with trainer.precision bf16-mixed or 32-true."
                )
            )
    raise DataError(
        f"the loss of {', '.join(batch.ids)} overflows although targets and predictions are "
        "finite: set model.objective.target_norm to layer_norm"
    )


def _not_finite(tensor: Tensor, mask: Tensor) -> Tensor:
    """Tell for each utterance whether a valid frame holds a value that is not finite, (batch,)."""
    return ((~torch.isfinite(tensor)).any(-1) & mask).any(-1)
