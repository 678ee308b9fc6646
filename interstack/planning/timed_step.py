"""Optimizer steps outside a run, timed part by part."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import lightning as L
import torch
from torch import nn

from interstack.data.batch import Batch
from interstack.distillation.module import Distillation
from interstack.distillation.reduction import rank_loss
from interstack.models.front_end import extract_features
from interstack.models.teacher import Teacher
from interstack.planning.predict import StepSplit
from interstack.tracking.step_timer import StepClock

ResultT = TypeVar("ResultT")


class TimedStep:
    """Takes steps with a student of one depth, timed as the run's own steps are.

    Args:
        trainer: Has number format and device, and how gradients are clipped.
        module: On the device.
    """

    def __init__(self, trainer: L.Trainer, module: Distillation) -> None:
        self.module = module.train()
        self._precision = trainer.precision_plugin
        self._device = trainer.strategy.root_device
        self._clip = trainer.gradient_clip_val
        self._clip_by_value = trainer.gradient_clip_algorithm == "value"
        self._optimizer = module.configure_optimizers()
        self._clock = StepClock(self._device)

    @property
    def depth(self) -> int:
        """Encoder layers of the student."""
        return self.module.depth

    def run(self, batch: Batch) -> StepSplit:
        """Take a step, and return where its time went; of ``data`` only moving it to the device."""
        module, clock = self.module, self._clock
        clock.watch(
            module.teacher if isinstance(module.teacher, Teacher) else None,
            module.student,
            extracts_features=module.extracts_features,
        )
        clock.skip_time()
        moved = module.transfer_batch_to_device(batch, self._device, 0)
        clock.begin(True)
        with self._precision.forward_context():
            loss = rank_loss(module.batch_loss(moved).sums, module.objective, 1)
        clock.mark("student_forward")
        torch.autograd.backward(loss.to_minimise)
        clock.mark("backward")
        self._update()
        parts = clock.end()
        clock.unwatch()
        return StepSplit(**parts)

    def validate(self, batch: Batch) -> float:
        """Return the seconds that a validation batch takes."""
        moved = self.module.transfer_batch_to_device(batch, self._device, 0)
        self.module.eval()
        with torch.no_grad(), self._precision.forward_context():
            _, seconds = self._timed(lambda: self.module.batch_loss(moved))
        self.module.train()
        return seconds

    def trained_front_end(self, batch: Batch) -> tuple[float, float]:
        """Return the seconds of forward and backward in the student's front end; 0 if frozen."""
        student = self.module.student
        if student.freeze_front_end:
            return 0.0, 0.0
        moved = self.module.transfer_batch_to_device(batch, self._device, 0)
        extractor = student.model.feature_extractor
        with self._precision.forward_context():
            features, forward = self._timed(
                lambda: extract_features(extractor, moved.waveforms, moved.num_samples)
            )
        _, backward = self._timed(features.float().mean().backward)
        self._optimizer.zero_grad(set_to_none=True)
        return forward, backward

    def _update(self) -> None:
        parameters = [each for each in self.module.parameters() if each.requires_grad]
        if self._clip and self._clip_by_value:
            nn.utils.clip_grad_value_(parameters, float(self._clip))
        elif self._clip:
            nn.utils.clip_grad_norm_(parameters, float(self._clip))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _timed(self, work: Callable[[], ResultT]) -> tuple[ResultT, float]:
        """Return what some work returns, and the seconds until the device is done with it."""
        begin = time.perf_counter()
        result = work()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return result, time.perf_counter() - begin
