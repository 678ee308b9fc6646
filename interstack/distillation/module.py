"""The LightningModule: a frozen teacher, a growing student, and the loss between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor

from interstack.data.batch import Batch
from interstack.distillation.checks import check_lengths
from interstack.distillation.finite import check_finite
from interstack.distillation.metrics import DistillationLoss
from interstack.distillation.objective import ObjectiveConfig, TapSums, tap_sums, total_loss
from interstack.distillation.optimizer import OptimizerConfig, make_optimizer
from interstack.distillation.structure import CHECKPOINT_KEY, rebuild_student, student_structure
from interstack.distillation.targets import FrameGrid, TargetNorm, align_frames, channel_sums
from interstack.growth.plan import GrowthPlan
from interstack.growth.progress import run_progress
from interstack.models.build import build_student, load_teacher
from interstack.models.config import StudentConfig, TeacherConfig
from interstack.models.front_end import frame_hop, receptive_field
from interstack.models.student import Student, StudentOutput
from interstack.models.teacher import Teacher

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
        self._teacher: list[Teacher] = []  # in a list, so that torch does not register it

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
    def teacher(self) -> Teacher:
        """The frozen teacher; there after ``setup``."""
        return self._teacher[0]

    def setup(self, stage: str) -> None:
        """Load the teacher, and build the student unless a checkpoint has."""
        if not self._teacher and stage != "predict":
            self._teacher = [load_teacher(self.teacher_config, self.initial_depth)]
        if not hasattr(self, "student"):
            if not self._teacher:
                self._teacher = [load_teacher(self.teacher_config, self.initial_depth)]
            student = build_student(self.student_config, self.initial_depth, self.teacher)
            self._adopt(student)
        datamodule: Any = getattr(self._trainer, "datamodule", None)  # no Trainer in a notebook
        if datamodule is not None:
            check_lengths(datamodule, self.student, self._teacher[0] if self._teacher else None)

    def _adopt(self, student: Student) -> None:
        """Take a student of any structure, with what hangs on its taps."""
        self.student = student
        num_taps = len(student.teacher_taps)
        self.target_norm = TargetNorm(self.objective, num_taps, student.teacher_width)
        self.validation_loss = DistillationLoss(self.objective, num_taps)
        self.test_loss = DistillationLoss(self.objective, num_taps)

    def grow(self, plan: GrowthPlan) -> None:
        """Grow the student in place; the optimizer has to be made anew."""
        self.student.grow(plan)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the student's structure."""
        checkpoint[CHECKPOINT_KEY] = student_structure(self.student)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rebuild the student at the checkpoint's depth; Lightning loads the weights next."""
        self._adopt(rebuild_student(checkpoint[CHECKPOINT_KEY]).to(self.device))

    def on_fit_start(self) -> None:
        """Move the teacher, and measure the targets' channels where the objective wants it."""
        self._move_teacher()
        if self.target_norm.wants_statistics:
            self._measure_targets()

    def on_validation_start(self) -> None:
        """Move the teacher."""
        self._move_teacher()

    def on_test_start(self) -> None:
        """Move the teacher."""
        self._move_teacher()

    def _move_teacher(self) -> None:
        for teacher in self._teacher:
            teacher.to(self.device)

    # Loss ---------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> tuple[StudentOutput, tuple[Tensor, ...]]:
        """Return the student's output and the normalised targets, one tensor a tap."""
        shared = self.student.freeze_front_end
        told = self.teacher(batch.waveforms, batch.num_samples, with_features=shared)
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

    def tap_sums(self, batch: Batch) -> TapSums:
        """Return the sums that the loss of a batch is made of.

        Raises:
            DataError: If a target is not finite, with the utterances' names.
        """
        output, raw_targets = self(batch)
        targets = self.target_norm(raw_targets)
        sums = tap_sums(output.predictions, targets, output.mask, self.objective)
        check_finite(sums, raw_targets, output, batch)
        return sums

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch, averaged over the valid frames of all ranks."""
        del batch_idx
        sums = self.tap_sums(batch)
        # DDP averages gradients over ranks: weight each by its share of the frames.
        frames = sums.num_frames.float()
        if self.trainer.world_size > 1:
            frames = self.trainer.strategy.reduce(frames, reduce_op="mean")
        by_tap = sums.by_tap / frames.clamp(min=1)
        loss = total_loss(by_tap, self.objective)
        self._log_losses("train", loss.detach(), by_tap.detach(), on_step=True)
        return loss

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate that is due; growth, a callback, has come before."""
        del batch, batch_idx
        rate = self.optimizer_config.learning_rate_at(run_progress(self.trainer))
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        self.log_dict({"train/learning_rate": rate, "train/depth": float(self.depth)})

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Gather the validation loss."""
        del batch_idx
        self.validation_loss.update(self.tap_sums(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the validation loss over all ranks."""
        self._log_metric("val", self.validation_loss)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Gather the test loss."""
        del batch_idx
        self.test_loss.update(self.tap_sums(batch))

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
        metric.reset()

    def _log_losses(self, prefix: str, loss: Tensor, by_tap: Tensor, *, on_step: bool) -> None:
        """Log the loss, and each tap's distance under the teacher layer's index."""
        names = (f"{prefix}/loss_tap_{tap}" for tap in self.student.teacher_taps)
        values = dict(zip(names, by_tap.unbind(), strict=True)) | {f"{prefix}/loss": loss}
        self.log_dict(values, on_step=on_step, on_epoch=not on_step, batch_size=1)

    # Optimisation -------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make a fresh AdamW over what is trained; called at the start and after each growth."""
        return make_optimizer(self.named_parameters(), self.optimizer_config)

    @torch.no_grad()
    def _measure_targets(self) -> None:
        """Take the targets' channel statistics from the first seconds of training data."""
        sums = []
        seconds = 0.0
        for batch in self._training_batches():
            output, targets = self(self.trainer.strategy.batch_to_device(batch))
            sums.append(channel_sums(targets, output.mask))
            seconds += float(batch.seconds)
            if seconds * self.trainer.world_size >= self.objective.target_norm_seconds:
                break
        total = [torch.stack(parts).sum(0) for parts in zip(*sums, strict=True)]
        if self.trainer.world_size > 1:
            total = [self.trainer.strategy.reduce(part, reduce_op="sum") for part in total]
        self.target_norm.measure([(total[0], total[1], total[2])])

    def _training_batches(self) -> Iterable[Batch]:
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            self.trainer.fit_loop.setup_data()  # otherwise loaders given to fit() come later
        source: Any = datamodule.train_dataloader() if datamodule else self.trainer.train_dataloader
        batches: Iterable[Batch] = source
        return batches


def _config(kind: type[ConfigT], value: ConfigT | dict[str, Any]) -> ConfigT:
    """Return settings as their class, also where they come as a dictionary from a checkpoint."""
    return kind(**value) if isinstance(value, dict) else value
