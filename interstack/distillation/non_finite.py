"""What becomes of training batches whose loss is not finite: the run stops, or goes on without."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, get_args

import lightning as L
import torch
from torch import Tensor, nn

from interstack.data.batch import Batch
from interstack.distillation.finite import BatchLoss
from interstack.distillation.logged_steps import step_is_logged
from interstack.distillation.pending import MOST_PENDING, PendingBatches
from interstack.errors import ConfigurationError, DataError

NonFinitePolicy = Literal["stop", "skip"]
CHECKPOINT_KEY: Final = "interstack_skipped_batches"
ANOTHER_RANK: Final = (
    "the loss of another rank is not finite, and that rank's own message names the utterances"
)

_log = logging.getLogger(__name__)


class NonFiniteBatches:
    """Stops a run at a batch whose loss is not finite, or skips and counts such batches.

    Whether it is, a CPU says at once. A GPU would be kept waiting by the question, so ``stop`` asks
    it now and then, for all batches since the last time, and what a bad batch would have done to
    the weights is held back until then. ``skip`` makes a GPU wait at each batch: what is logged,
    counted and averaged in the meantime depends on the answer.

    Args:
        policy: ``stop`` or ``skip``.

    Raises:
        ConfigurationError: If the policy is neither.
    """

    skipped: int
    """Batches skipped since the run's beginning; all ranks' micro-batches count as one."""
    patience: int | None
    """Batches that may wait for a look; 1 looks at each, None is what suits the device."""

    def __init__(self, policy: NonFinitePolicy) -> None:
        if policy not in get_args(NonFinitePolicy):
            raise ConfigurationError(
                f"there is no non_finite {policy!r}: choose one of "
                f"{', '.join(get_args(NonFinitePolicy))}"
            )
        self.policy = policy
        self.skipped = 0
        self.patience = None
        self._window_counts = False
        self._skipped_before = 0  # in the steps that are done
        self._pending = PendingBatches()

    def defers(self, trainer: L.Trainer) -> bool:
        """Whether batches are looked at later, with ``defer`` and ``look``."""
        return self.policy == "stop" and self._patience(trainer) > 1

    def _patience(self, trainer: L.Trainer) -> int:
        if self.patience is not None:
            return self.patience
        on_cpu = trainer.strategy.root_device.type == "cpu"
        # A scaler waits for the device at every step by itself, and holds updates back in its way.
        scales = getattr(trainer.precision_plugin, "scaler", None) is not None
        obeys = all(optimizer.defaults.get("fused") for optimizer in trainer.optimizers)
        return 1 if on_cpu or scales or not obeys else MOST_PENDING

    def defer(self, mine: BatchLoss, loss: Tensor, trainer: L.Trainer) -> bool:
        """Note a batch that is looked at later; all ranks call this together.

        Args:
            mine: This rank's part of it.
            loss: Its loss over all ranks, ().
            trainer: The run's.

        Returns:
            Whether it is time to look: where losses are logged and so waited for anyway, and
            where too many batches are kept.
        """
        step = trainer.global_step
        self._pending.add(step, mine.batch, loss, mine.sums.by_tap)
        return step_is_logged(trainer) or len(self._pending) >= self._patience(trainer)

    def forget(self) -> None:
        """Forget what a fit that broke off has left to be looked at."""
        self._pending = PendingBatches()
        self._window_counts = False

    def look(self, again: Callable[[Batch], BatchLoss]) -> None:
        """Wait for the device and look at the batches since the last time; so do all ranks.

        Args:
            again: Computes a batch's loss once more.

        Raises:
            DataError: With step and utterances, if one of them was not finite.
        """
        found = self._pending.take_first_bad()
        if found is None:
            return
        (step, batch, _), is_mine = found
        if not is_mine:
            raise self._stop(f"step {step}: {ANOTHER_RANK}")
        mine = again(batch)
        if not mine.is_finite:
            raise self._stop(mine.fault(f"step {step}"))
        raise self._stop(
            f"step {step}: the loss of {', '.join(batch.ids)} was not finite, but is when it is "
            "computed once more, so that chance (dropout) or the device had a part in it"
        )

    def _stop(self, fault: str) -> DataError:
        return DataError(f"{fault}; model.non_finite skip goes on without such batches")

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
            raise self._stop(f"{here}: {ANOTHER_RANK}" if mine.is_finite else mine.fault(here))
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

        A void step changes neither weights nor moments, and has no loss to log. Nor does a step
        from a bad batch on that is still to be looked at.
        """
        self._pending.hold_back(optimizer)
        if not self._window_counts:
            optimizer.zero_grad(set_to_none=True)  # with zeros, AdamW would decay and count on
            assert trainer._results is not None
            # they still hold the last loss, and Lightning would log it once more
            trainer._results.reset(fx="training_step")
        self._window_counts = False
        self._skipped_before = self.skipped

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Add the count to a checkpoint, which is always of the start of a window."""
        checkpoint[CHECKPOINT_KEY] = self._skipped_before

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take the count up from a checkpoint; one of before skipping existed has none."""
        self.skipped = self._skipped_before = checkpoint.get(CHECKPOINT_KEY, 0)
