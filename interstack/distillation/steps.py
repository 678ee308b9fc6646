"""What a distillation does at each step of training, validation, test and prediction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial

import lightning as L
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from interstack.data.batch import Batch
from interstack.data.loader import SpeechLoader
from interstack.distillation.finite import BatchLoss
from interstack.distillation.learning_rate_search import searches_learning_rate
from interstack.distillation.logged_steps import step_is_logged
from interstack.distillation.metrics import DistillationLoss
from interstack.distillation.non_finite import NonFiniteBatches
from interstack.distillation.objective import ObjectiveConfig
from interstack.distillation.optimizer import OptimizerConfig, make_optimizer
from interstack.distillation.reduction import AccumulationWindow, rank_loss
from interstack.growth.callback import growth_of
from interstack.growth.progress import run_progress
from interstack.models.student import Student, StudentOutput
from interstack.models.windows import WindowedOutput


class DistillationSteps(L.LightningModule):
    """The steps of ``Distillation``, which has what they are made of.

    With ``non_finite: stop`` no training step reads anything from a GPU, which would have to wait
    for the processor then: losses stay there until the loggers' next interval.
    """

    student: Student
    objective: ObjectiveConfig
    optimizer_config: OptimizerConfig
    non_finite: NonFiniteBatches
    validation_loss: DistillationLoss
    test_loss: DistillationLoss
    latest_loss: Tensor | None = None
    """Of the last optimizer step (of its batches so far), over all ranks, on the device."""
    window: AccumulationWindow
    """The batches that are accumulated for the next optimizer step."""

    @property
    @abstractmethod
    def layer_prefix(self) -> str:
        """What the names of encoder layers' parameters begin with, before the layer's number."""

    @abstractmethod
    def batch_loss(self, batch: Batch) -> BatchLoss:
        """Return what the loss of a batch is made of."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return what a batch adds to the loss of its optimizer step.

        That loss is the mean over the valid frames of all ranks and of all batches that are
        accumulated for the step; a batch that is skipped has none. Logged is the mean over the
        step's batches so far.

        Raises:
            DataError: On all ranks, if the loss of any is not finite and is not to be skipped.
        """
        del batch_idx
        mine = self.batch_loss(batch)
        if searches_learning_rate(self.trainer):  # at the highest rates it need not be finite
            return rank_loss(mine.sums, self.objective, self.trainer.world_size).to_minimise
        world_size, divisor = self.trainer.world_size, self.window.divisor
        loss = rank_loss(mine.sums, self.objective, world_size, divisor)
        self.window.open(loss)
        if self.non_finite.defers(self.trainer):
            if self.non_finite.defer(mine, loss.loss, self.trainer):
                self.look_at_losses()
        elif not bool(torch.isfinite(loss.loss)):
            step = self.trainer.global_step
            return self.non_finite.refuse(mine, step, self.student.parameters())
        self.non_finite.count()
        self.latest_loss, by_tap = self.window.add(loss, self.objective)
        if step_is_logged(self.trainer):
            self._log_losses("train", self.latest_loss, by_tap, on_step=True)
        else:  # for whoever asks the Trainer for it
            self.log("train/loss", self.latest_loss, on_step=True, on_epoch=False, batch_size=1)
        return loss.to_minimise

    def on_after_backward(self) -> None:
        """Bring the gradients of a complete window to the mean over its frames."""
        if not self.trainer.fit_loop._should_accumulate():
            self.window.finish(self.parameters(), self.trainer.accumulate_grad_batches)

    def look_at_losses(self) -> None:
        """Wait for the device if losses of training batches are still to be looked at.

        Raises:
            DataError: On all ranks, if one of them is not finite.
        """
        self.non_finite.look(self._batch_loss_again)

    @torch.no_grad()
    def _batch_loss_again(self, batch: Batch) -> BatchLoss:
        """Return what the loss of a training batch is made of, between two steps."""
        with self.trainer.precision_plugin.train_step_context():
            return self.batch_loss(batch)

    def on_train_end(self) -> None:
        """Look at the last losses."""
        self.look_at_losses()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let a step without a batch that counts change nothing, and log no loss."""
        self.non_finite.close_window(self.trainer, optimizer)
        if self.non_finite.policy == "skip":
            self._log_numbers({"train/skipped_batches": self.non_finite.skipped})

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate that is due; growth, a callback, has come before.

        While it re-warms after a growth step, the callback lowers the rate for the steps alone.
        """
        del batch, batch_idx
        if searches_learning_rate(self.trainer):
            return
        due = self.optimizer_config.learning_rate_at(run_progress(self.trainer))
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = due
        growth = growth_of(self.trainer)
        rate = due if growth is None else due * growth.learning_rate_factor
        self._log_numbers({"train/learning_rate": rate, "train/depth": self.student.depth})

    def _log_numbers(self, numbers: Mapping[str, float]) -> None:
        """Log what the processor knows; filled in on the device, which a copy would wait for."""
        if step_is_logged(self.trainer):
            self.log_dict(
                {
                    name: torch.full((), float(number), device=self.device)
                    for name, number in numbers.items()
                }
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Gather the validation loss."""
        loss = self.batch_loss(batch)
        self.validation_loss.update(loss.sums, partial(loss.fault, f"validation batch {batch_idx}"))

    def on_validation_epoch_end(self) -> None:
        """Log the validation loss over all ranks; all stop if it is not finite on any."""
        self._log_metric("val", self.validation_loss)

    def on_validation_end(self) -> None:
        """End the decoding workers: Lightning keeps the pass until the next validation.

        A pass ends its workers at its last batch, but ``trainer.limit_val_batches`` and the sanity
        check leave it before.
        """
        for loader in tree_leaves(self.trainer.val_dataloaders):
            if isinstance(loader, SpeechLoader):
                loader.close()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Gather the test loss."""
        loss = self.batch_loss(batch)
        self.test_loss.update(loss.sums, partial(loss.fault, f"test batch {batch_idx}"))

    def on_test_epoch_end(self) -> None:
        """Log the test loss over all ranks."""
        self._log_metric("test", self.test_loss)

    def predict_step(self, batch: Batch, batch_idx: int) -> StudentOutput | WindowedOutput:
        """Return the student's hidden states of a batch; of a long utterance, to be iterated over.

        What does not fit a batch is computed window by window, while it is read.
        """
        del batch_idx
        datamodule = getattr(self._trainer, "datamodule", None)
        window: int | None = getattr(datamodule, "window_samples", None)
        if window is not None and batch.waveforms.shape[1] > window:
            (waveform,) = batch.waveforms  # what is longer than a batch is a batch of its own
            return WindowedOutput(
                self.student, waveform, window, self.trainer.precision_plugin.predict_step_context
            )
        output: StudentOutput = self.student(batch.waveforms, batch.num_samples)
        return output

    def _log_metric(self, prefix: str, metric: DistillationLoss) -> None:
        loss, by_tap = metric.compute()
        # torchmetrics drops the dimension of a single tap
        self._log_losses(prefix, loss, by_tap.reshape(-1), on_step=False)

    def _log_losses(self, prefix: str, loss: Tensor, by_tap: Tensor, *, on_step: bool) -> None:
        """Log the loss, and each tap's distance under the teacher layer's index."""
        names = (f"{prefix}/loss_tap_{tap}" for tap in self.student.teacher_taps)
        values = dict(zip(names, by_tap.unbind(), strict=True)) | {f"{prefix}/loss": loss}
        self.log_dict(values, on_step=on_step, on_epoch=not on_step, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make a fresh optimizer over what is trained; also called after each growth step."""
        return make_optimizer(self.named_parameters(), self.optimizer_config, self.layer_prefix)
