"""What becomes of training batches whose loss is not finite: the run stops, or goes on without."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final, Literal, get_args

import lightning as L
import torch
from torch import Tensor, nn

from interstack.distillation.finite import BatchLoss
from interstack.errors import ConfigurationError, DataError

NonFinitePolicy = Literal["stop", "skip"]
CHECKPOINT_KEY: Final = "interstack_skipped_batches"
ANOTHER_RANK: Final = (
    "the loss of another rank is not finite, and that rank's own message names the utterances"
)

_log = logging.getLogger(__name__)


class NonFiniteBatches:
    """Stops a run at a batch whose loss is not finite, or skips and counts such batches.

    Args:
        policy: ``stop`` or ``skip``.

    Raises:
        ConfigurationError: If the policy is neither.
    """

    skipped: int
    """Batches skipped since the run's beginning; all ranks' micro-batches count as one."""

    def __init__(self, policy: NonFinitePolicy) -> None:
        if policy not in get_args(NonFinitePolicy):
            raise ConfigurationError(
                f"there is no non_finite {policy!r}: choose one of "
                f"{', '.join(get_args(NonFinitePolicy))}"
            )
        self.policy = policy
        self.skipped = 0
        self._window_counts = False

    def count(self) -> None:
        """Note that a batch of the present accumulation window counts."""
        self._window_counts = True

    def refuse(self, mine: BatchLoss, step: int, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Deal with a batch whose loss is not finite on some rank; all ranks call this together.

        Args:
            mine: This rank's part of it.
            step: The optimizer step that it would have gone into.
            parameters: The student's.

        Returns:
            In place of the loss, a zero whose gradient is zero for every trained parameter: under
            DDP each of them needs one.

        Raises:
            DataError: With step and utterances if the policy is ``stop``, or if the weights are
                not finite themselves, so that no batch would ever count again.
        """
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if self.policy == "stop":
            here = f"step {step}"
            fault = f"{here}: {ANOTHER_RANK}" if mine.is_finite else mine.fault(here)
            raise DataError(f"{fault}; model.non_finite skip goes on without such batches")
        if not all(bool(torch.isfinite(parameter).all()) for parameter in trained):
            raise DataError(
                f"step {step}: the student's weights are no longer finite, so no batch is left to "
                "train on: go back to an earlier checkpoint with a lower "
                "model.optimizer.learning_rate"
            )
        self.skipped += 1
        if not mine.is_finite:
            _log.warning("%s; the batch is skipped", mine.fault(f"step {step}"))
        return torch.stack([parameter.flatten()[0] * 0.0 for parameter in trained]).sum()

    def close_window(self, trainer: L.Trainer, optimizer: torch.optim.Optimizer) -> None:
        """End an accumulation window, before its step; one without a batch that counts is void.

        A void step changes neither weights nor moments, and has no loss to log.
        """
        if not self._window_counts:
            optimizer.zero_grad(set_to_none=True)  # with zeros, AdamW would decay and count on
            assert trainer._results is not None
            # they still hold the last loss, and Lightning would log it once more
            trainer._results.reset(fx="training_step")
        self._window_counts = False

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Add the count to a checkpoint."""
        checkpoint[CHECKPOINT_KEY] = self.skipped

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take the count up from a checkpoint; one of before skipping existed has none."""
        self.skipped = checkpoint.get(CHECKPOINT_KEY, 0)
