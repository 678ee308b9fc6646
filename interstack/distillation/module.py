"""The LightningModule: a frozen teacher, a growing student, and the loss between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor

from interstack.data.batch import Batch
from interstack.distillation.channel_statistics import measure_channels
from interstack.distillation.checks import check_lengths
from interstack.distillation.finite import BatchLoss
from interstack.distillation.metrics import DistillationLoss
from interstack.distillation.non_finite import NonFiniteBatches, NonFinitePolicy
from interstack.distillation.objective import ObjectiveConfig, tap_sums
from interstack.distillation.optimizer import OptimizerConfig, make_optimizer
from interstack.distillation.precision import check_precision
from interstack.distillation.reduction import rank_loss
from interstack.distillation.structure import CHECKPOINT_KEY, rebuild_student, student_structure
from interstack.distillation.targets import FrameGrid, TargetNorm, align_frames
from interstack.growth.plan import GrowthPlan
from interstack.growth.progress import run_progress
from interstack.models.build import build_student, load_teacher, taps_of
from interstack.models.config import StudentConfig, TeacherConfig
from interstack.models.front_end import frame_hop, receptive_field
from interstack.models.student import Student, StudentOutput
from interstack.models.teacher import Teacher, TeacherOutput
from interstack.target_cache.cache import TargetCache
from interstack.target_cache.teacher import CachedTeacher

ConfigT = TypeVar("ConfigT")


class Distillation(L.LightningModule):
    """Distils a teacher into a student whose depth ``InterleavedStacking`` lets grow.

    The module owns the student's depth: it goes into every checkpoint under a key of its own and is
    rebuilt before the weights are loaded. The teacher is loaded at ``setup``, is no submodule, and
    so is never trained, wrapped or saved.

    Args:
        teacher: The speech foundation model.
        student: The student's shape.
        objective: What is minimised.
        optimizer: How.
        initial_depth: Encoder layers of the first stage; the command line takes it from
            ``growth.depths``.
        non_finite: What a training batch whose loss is not finite does: ``stop`` the run and name
            the utterances, or ``skip``: it is left out, named in the log and counted in
            ``train/skipped_batches``. Validation and test always stop.
    """

    student: Student
    target_norm: TargetNorm

    def __init__(
        self,
        teacher: TeacherConfig,
        student: StudentConfig = StudentConfig(),  # noqa: B008, frozen
        objective: ObjectiveConfig = ObjectiveConfig(),  # noqa: B008, frozen
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008, frozen
        initial_depth: int = 3,
        non_finite: NonFinitePolicy = "stop",
    ) -> None:
        super().__init__()
        # Checkpoints hold the settings as plain dictionaries, and come back as such.
        self.teacher_config = _config(TeacherConfig, teacher)
        self.student_config = _config(StudentConfig, student)
        self.objective = _config(ObjectiveConfig, objective)
        self.optimizer_config = _config(OptimizerConfig, optimizer)
        self.initial_depth = initial_depth
        self.save_hyperparameters(
            {
                "teacher": asdict(self.teacher_config),
                "student": asdict(self.student_config),
                "objective": asdict(self.objective),
                "optimizer": asdict(self.optimizer_config),
                "initial_depth": initial_depth,
            }
        )
        self.learning_rate_scale: float = 1.0  # growth lowers it while it re-warms
        # No hyper-parameter: those of a checkpoint overrule the command line, and a run that has
        # stopped at a batch has to go on without it.
        self.non_finite = NonFiniteBatches(non_finite)
        # in a list, so that torch does not register it
        self._teacher: list[Teacher | CachedTeacher] = []

    # Structure ----------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Encoder layers of the student at present."""
        return self.student.depth

    @property
    def lineage(self) -> tuple[int, ...]:
        """For every layer of the student, the index of its ancestor in the first stack."""
        return self.student.lineage

    @property
    def layer_prefix(self) -> str:
        """What the names of encoder layers' parameters begin with, before the layer's number."""
        return "student.model.encoder.layers."

    @property
    def teacher(self) -> Teacher | CachedTeacher:
        """The frozen teacher, or the cache that stands in for it; there after ``setup``."""
        return self._teacher[0]

    def setup(self, stage: str) -> None:
        """Load the teacher, unless its targets are cached; build the student, unless it is there.

        Raises:
            ConfigurationError: If settings, teacher, cache and data don't fit each other.
            TeacherError: If the teacher can't be loaded.
        """
        if self._trainer is not None:  # there is none in a notebook
            check_precision(str(self._trainer.precision))
        datamodule: Any = getattr(self._trainer, "datamodule", None)
        targets: TargetCache | None = getattr(datamodule, "targets", None)
        builds = not hasattr(self, "student")
        if not self._teacher and (stage != "predict" or builds):
            self._teacher = [self._find_teacher(targets)]
        if builds:
            self._adopt(build_student(self.student_config, self.initial_depth, self.teacher))
        if targets is not None:
            targets.with_features = self.student.freeze_front_end
        if datamodule is not None:
            check_lengths(datamodule, self.student, self._teacher[0] if self._teacher else None)

    def _find_teacher(self, targets: TargetCache | None) -> Teacher | CachedTeacher:
        if targets is None:
            return load_teacher(self.teacher_config, self.initial_depth)
        layers = targets.record.num_layers
        taps = taps_of(self.teacher_config, layers, self.initial_depth)
        targets.record.check_teacher(self.teacher_config, taps)
        return CachedTeacher(targets)

    def _adopt(self, student: Student) -> None:
        """Take a student of any structure, with what hangs on its taps."""
        self.student = student
        num_taps = len(student.teacher_taps)
        self.target_norm = TargetNorm(self.objective, num_taps, student.teacher_width)
        self.validation_loss = DistillationLoss(self.objective, num_taps)
        self.test_loss = DistillationLoss(self.objective, num_taps)

    def grow(self, plan: GrowthPlan) -> None:
        """Grow the student in place; the optimizer has to be made anew."""
        self.look_at_losses()
        self.student.grow(plan)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the student's structure and the number of skipped batches.

        Raises:
            DataError: If the run is to stop at a batch that was trained on, but not looked at.
        """
        self.look_at_losses()
        checkpoint[CHECKPOINT_KEY] = student_structure(self.student)
        self.non_finite.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rebuild the student at the checkpoint's depth; Lightning loads the weights next."""
        self._adopt(rebuild_student(checkpoint[CHECKPOINT_KEY]).to(self.device))
        self.non_finite.load(checkpoint)

    def on_fit_start(self) -> None:
        """Move the teacher, and measure the targets' channels where the objective wants it."""
        self.non_finite.forget()
        self._move_teacher()
        if self.target_norm.wants_statistics:
            seconds, policy = self.objective.target_norm_seconds, self.non_finite.policy
            self.target_norm.measure(measure_channels(self.trainer, self, seconds, policy))

    def on_validation_start(self) -> None:
        """Move the teacher; forget what a validation that broke off has left."""
        if self.trainer.state.fn == "fit":
            self.look_at_losses()
        self._move_teacher()
        self.validation_loss.reset()

    def on_test_start(self) -> None:
        """Move the teacher; forget what a test that broke off has left."""
        self._move_teacher()
        self.test_loss.reset()

    def _move_teacher(self) -> None:
        for teacher in self._teacher:
            teacher.to(self.device)

    # Loss ---------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> tuple[StudentOutput, tuple[Tensor, ...]]:
        """Return the student's output and the targets before their normalisation, one a tap."""
        told = self.tell(batch)
        output = self.student(batch.waveforms, batch.num_samples, told.features)
        targets = align_frames(
            told.hidden_states,
            told.num_frames,
            FrameGrid(self.teacher.first_frame_centre, self.teacher.frame_hop),
            FrameGrid(
                (receptive_field(self.student.config) - 1) / 2, frame_hop(self.student.config)
            ),
            output.mask.shape[1],
        )
        return output, targets

    def tell(self, batch: Batch) -> TeacherOutput:
        """Return what the teacher says of a batch: now, or when the cache was made."""
        teacher = self.teacher
        if isinstance(teacher, CachedTeacher):
            assert batch.told is not None
            return teacher.recall(batch.told)
        shared = self.student.freeze_front_end
        told: TeacherOutput = teacher(batch.waveforms, batch.num_samples, with_features=shared)
        return told

    def batch_loss(self, batch: Batch) -> BatchLoss:
        """Return what the loss of a batch is made of, in fp32 whatever the models compute in."""
        output, told = self(batch)
        with torch.autocast(self.device.type, enabled=False):
            targets = self.target_norm(told)
            sums = tap_sums(output.predictions, targets, output.mask, self.objective)
        return BatchLoss(sums, told, output, batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch, averaged over the valid frames of all ranks.

        With ``trainer.accumulate_grad_batches`` each batch of a window counts alike, by its own
        mean, however many frames it has; what is skipped counts as nothing, and the rest as usual.

        Raises:
            DataError: On all ranks, if the loss of any is not finite and is not to be skipped.
        """
        del batch_idx
        mine = self.batch_loss(batch)
        loss = rank_loss(mine.sums, self.objective, self.trainer.world_size)
        if self.non_finite.defers(self.trainer):
            if self.non_finite.defer(mine, loss.loss, self.trainer):
                self.look_at_losses()
        elif not bool(torch.isfinite(loss.loss)):
            step = self.trainer.global_step
            return self.non_finite.refuse(mine, step, self.student.parameters())
        self.non_finite.count()
        self._log_losses("train", loss.loss, loss.by_tap, on_step=True)
        return loss.to_minimise

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
        """Set the learning rate that is due; growth, a callback, has come before."""
        del batch, batch_idx
        due = self.optimizer_config.learning_rate_at(run_progress(self.trainer))
        rate = due * self.learning_rate_scale
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        self._log_numbers({"train/learning_rate": rate, "train/depth": self.depth})

    def _log_numbers(self, numbers: Mapping[str, float]) -> None:
        """Log what the processor knows; filled in on the device, which a copy would wait for."""
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

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Gather the test loss."""
        loss = self.batch_loss(batch)
        self.test_loss.update(loss.sums, partial(loss.fault, f"test batch {batch_idx}"))

    def on_test_epoch_end(self) -> None:
        """Log the test loss over all ranks."""
        self._log_metric("test", self.test_loss)

    def predict_step(self, batch: Batch, batch_idx: int) -> StudentOutput:
        """Return the student's hidden states of a batch."""
        del batch_idx
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

    # Optimisation -------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make a fresh AdamW over what is trained; called at the start and after each growth."""
        return make_optimizer(self.named_parameters(), self.optimizer_config)


def _config(kind: type[ConfigT], value: ConfigT | dict[str, Any]) -> ConfigT:
    """Return settings as their class, also where they come as a dictionary from a checkpoint."""
    return kind(**value) if isinstance(value, dict) else value
