"""Batches whose loss is not finite: the run stops and names them, or continues without them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, NamedTuple, get_args

import lightning as L
import torch
from torch import Tensor, nn

from interstack.data.batch import Batch
from interstack.distillation.objective import TapSums
from interstack.errors import ConfigurationError, DataError
from interstack.models.student import StudentOutput
from interstack.models.teacher import overflow_fix


def step_is_logged(trainer: L.Trainer) -> bool:
    """Return whether the loggers will be given the present optimizer step.

    Keeping a figure costs Lightning a third of a millisecond, so that what nobody would see of the
    other steps is not kept.
    """
    every: int = vars(trainer)["log_every_n_steps"]  # set by Lightning without a declaration
    return every > 0 and (trainer.global_step + 1) % every == 0


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
            where: Which batch it is, the first words of the sentence.
        """
        padding = ~self.output.mask[..., None]
        past_end = torch.arange(self.batch.waveforms.shape[1], device=padding.device)
        silence = past_end >= self.batch.num_samples[:, None]
        # In the order of cause and effect: bad audio makes the target bad, and that the loss.
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


MOST_PENDING: Final = 32
"""Most batches that wait for their check; all of them are kept till then."""


class PendingBatch(NamedTuple):
    """A batch that was trained on unless its loss was not finite.

    Attributes:
        step: The optimizer step that it went into.
        batch: The batch.
        is_bad: Whether the loss over all ranks, and that over this rank's part, was not finite,
            (2,) float32 on the device, 1 for yes.
    """

    step: int
    batch: Batch
    is_bad: Tensor


class PendingBatches:
    """Holds the updates back from the first bad batch on, and finds that batch later."""

    def __init__(self) -> None:
        self._batches: list[PendingBatch] = []
        self._any_bad: Tensor | None = None

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, step: int, batch: Batch, loss: Tensor, mine: Tensor) -> None:
        """Note a batch, without waiting for the device.

        Args:
            step: The optimizer step that it goes into.
            batch: The batch.
            loss: The loss over all ranks' parts, ().
            mine: The sums over this rank's part, of any shape.
        """
        is_bad = torch.stack([~torch.isfinite(loss), ~torch.isfinite(mine).all()]).float()
        self._batches.append(PendingBatch(step, batch, is_bad))
        earlier = self._any_bad
        # Once bad, always bad: weights and moments stay those that the bad batch was met with.
        self._any_bad = is_bad[0] if earlier is None else torch.maximum(earlier, is_bad[0])

    def hold_back(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the step that comes change nothing if a batch was bad; fused optimizers heed it."""
        fused: Any = optimizer
        fused.found_inf = self._any_bad

    def take_first_bad(self) -> tuple[PendingBatch, bool] | None:
        """Forget all batches, and return the first bad one; waits for the device.

        Returns:
            The batch, and whether this rank's part of it is bad itself; None if none is.
        """
        batches, self._batches, self._any_bad = self._batches, [], None
        if not batches:
            return None
        for each, (bad, mine_bad) in zip(
            batches, torch.stack([each.is_bad for each in batches]).tolist(), strict=True
        ):
            if bad:
                return each, bool(mine_bad)
        return None


NonFinitePolicy = Literal["stop", "skip"]
CHECKPOINT_KEY: Final = "interstack_skipped_batches"
ANOTHER_RANK: Final = (
    "the loss of another rank is not finite, and that rank's own message names the utterances"
)

_log = logging.getLogger(__name__)


class NonFiniteBatches:
    """Stops a run at a batch whose loss is not finite, or skips and counts such batches.

    On a CPU each batch is checked at once. On a GPU a check waits for the device, so ``stop``
    checks now and then, all batches since the last check, and what a bad batch would have done to
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
    """Batches that may wait for their check; 1 checks each, None is what suits the device."""

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
        """Whether batches are checked later, with ``defer`` and ``check``."""
        return self.policy == "stop" and self._patience(trainer) > 1

    def _patience(self, trainer: L.Trainer) -> int:
        if self.patience is not None:
            return self.patience
        # Nothing is asynchronous on a CPU, so that looking costs nothing.
        on_cpu = trainer.strategy.root_device.type == "cpu"
        # A scaler waits for the device at every step by itself, and holds updates back in its way.
        scales = getattr(trainer.precision_plugin, "scaler", None) is not None
        heeds = all(optimizer.defaults.get("fused") for optimizer in trainer.optimizers)
        return 1 if on_cpu or scales or not heeds else MOST_PENDING

    def defer(self, mine: BatchLoss, loss: Tensor, trainer: L.Trainer) -> bool:
        """Note a batch that is checked later; all ranks call this together.

        Args:
            mine: This rank's part of it.
            loss: Its loss over all ranks, ().
            trainer: The run's.

        Returns:
            Whether it is time to check: where losses are logged and so waited for anyway, and
            where too many batches are kept.
        """
        step = trainer.global_step
        self._pending.add(step, mine.batch, loss, mine.sums.by_tap)
        return step_is_logged(trainer) or len(self._pending) >= self._patience(trainer)

    def forget(self) -> None:
        """Forget what a fit that broke off has left to be checked."""
        self._pending = PendingBatches()
        self._window_counts = False

    def check(self, recompute: Callable[[Batch], BatchLoss]) -> None:
        """Wait for the device and check the batches since the last time; so do all ranks.

        Args:
            recompute: Computes a batch's loss once more.

        Raises:
            DataError: With step and utterances, if one of them was not finite.
        """
        found = self._pending.take_first_bad()
        if found is None:
            return
        (step, batch, _), is_mine = found
        if not is_mine:
            raise self._stop(f"step {step}: {ANOTHER_RANK}")
        mine = recompute(batch)
        if not mine.is_finite:
            raise self._stop(mine.fault(f"step {step}"))
        raise self._stop(
            f"step {step}: the loss of {', '.join(batch.ids)} was not finite, but is when it is "
            "computed once more, so that chance (dropout) or the device had a part in it"
        )

    def _stop(self, fault: str) -> DataError:
        return DataError(f"{fault}; model.non_finite skip continues without such batches")

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
        from a bad batch on that is still to be checked.
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
