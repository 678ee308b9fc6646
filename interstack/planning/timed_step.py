"""One optimizer step, taken apart and timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import lightning as L
import torch
from torch import Tensor, nn

from interstack.data.batch import Batch
from interstack.distillation.module import Distillation
from interstack.distillation.reduction import rank_loss
from interstack.models.front_end import extract_features
from interstack.models.teacher import Teacher
from interstack.planning.predict import StepSplit

ResultT = TypeVar("ResultT")


class TimedStep:
    """Steps of a student of one depth.

    Args:
        trainer: Says number format and device, and how gradients are clipped.
        module: On the device.
    """

    def __init__(self, trainer: L.Trainer, module: Distillation) -> None:
        self.module = module.train()
        self._precision = trainer.precision_plugin
        self._device = trainer.strategy.root_device
        self._clip = trainer.gradient_clip_val
        self._clip_by_value = trainer.gradient_clip_algorithm == "value"
        self._optimizer = module.configure_optimizers()

    @property
    def depth(self) -> int:
        """Encoder layers of the student."""
        return self.module.depth

    def run(self, batch: Batch, front_ends: tuple[float, float] = (0.0, 0.0)) -> StepSplit:
        """Take a step, and return where its time went.

        Args:
            batch: The batch; how long it was waited for is for others to say.
            front_ends: What `front_ends` says of it.
        """
        module = self.module
        moved, move = self._timed(lambda: module.transfer_batch_to_device(batch, self._device, 0))
        with self._precision.forward_context():
            told, telling = self._timed(lambda: module.teacher_forward(moved))
            loss, learning = self._timed(
                lambda: rank_loss(module.batch_loss(moved, told).sums, module.objective, 1)
            )
        _, backward = self._timed(loss.to_minimise.backward)
        _, optimizer = self._timed(self._update)
        before, within = front_ends[0], front_ends[1]
        if module.extracts_features:  # beside the teacher, before the student
            before, within = before + within, 0.0
        before, within = min(telling, before), min(learning, within)
        return StepSplit(
            data=move,
            front_end=before + within,
            teacher=telling - before,
            student_forward=learning - within,
            backward=backward,
            optimizer=optimizer,
        )

    def validate(self, batch: Batch) -> float:
        """Return the seconds that a validation batch takes."""
        moved = self.module.transfer_batch_to_device(batch, self._device, 0)
        self.module.eval()
        with torch.no_grad(), self._precision.forward_context():
            _, seconds = self._timed(lambda: self.module.batch_loss(moved))
        self.module.train()
        return seconds

    def front_end_training(self, batch: Batch) -> float:
        """Return the seconds that the student's own front end takes, forward and backward."""
        if self._hears_nothing(batch) or self.module.student.freeze_front_end:
            return 0.0
        moved = self.module.transfer_batch_to_device(batch, self._device, 0)
        extractor = self.module.student.model.feature_extractor
        with self._precision.forward_context():
            features, forward = self._timed(lambda: self._features(extractor, moved))
        _, backward = self._timed(features.float().mean().backward)
        self._optimizer.zero_grad(set_to_none=True)
        return forward + backward

    def _update(self) -> None:
        parameters = [each for each in self.module.parameters() if each.requires_grad]
        if self._clip and self._clip_by_value:
            nn.utils.clip_grad_value_(parameters, float(self._clip))
        elif self._clip:
            nn.utils.clip_grad_norm_(parameters, float(self._clip))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def front_ends(self, batch: Batch) -> tuple[float, float]:
        """Return the seconds of a forward pass in the teacher's front end and in the student's.

        0 for one that is not run: the shared one is the teacher's, features may be cached, and
        what a teacher of log-mel does before its layers counts as the teacher.
        """
        if self._hears_nothing(batch):
            return 0.0, 0.0
        batch = self.module.transfer_batch_to_device(batch, self._device, 0)
        teacher, student = self.module.teacher, self.module.student
        of_teacher = of_student = 0.0
        if isinstance(teacher, Teacher) and teacher.takes_waveform:
            dtype = next(teacher.feature_extractor.parameters()).dtype
            waveforms = batch.waveforms.to(dtype)
            with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
                _, of_teacher = self._timed(
                    lambda: extract_features(
                        teacher.feature_extractor, waveforms, batch.num_samples
                    )
                )
        if self.module.extracts_features:
            _, of_student = self._timed(
                lambda: student.front_end_features(batch.waveforms, batch.num_samples)
            )
        elif not student.freeze_front_end:
            extractor = student.model.feature_extractor
            with self._precision.forward_context():
                _, of_student = self._timed(lambda: self._features(extractor, batch))
        return of_teacher, of_student

    def _features(self, extractor: nn.Module, batch: Batch) -> Tensor:
        return extract_features(extractor, batch.waveforms, batch.num_samples)

    def _hears_nothing(self, batch: Batch) -> bool:
        return batch.waveforms.shape[1] == 0

    def _timed(self, work: Callable[[], ResultT]) -> tuple[ResultT, float]:
        """Do some work and wait for the device to be done with it."""
        begin = time.perf_counter()
        result = work()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return result, time.perf_counter() - begin
