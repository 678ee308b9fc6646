"""The LightningModule: a frozen teacher, a growing student, and the loss between them."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any, Self, TypeVar

import lightning as L
import torch
from torch import Tensor

from interstack.data.batch import Batch
from interstack.distillation.averaging import (
    KeepAverages,
    averaging_callback,
    check_callbacks,
    check_goes_on,
)
from interstack.distillation.channel_statistics import measure_channels
from interstack.distillation.checks import check_lengths
from interstack.distillation.finite import BatchLoss
from interstack.distillation.metrics import DistillationLoss
from interstack.distillation.non_finite import NonFiniteBatches, NonFinitePolicy
from interstack.distillation.objective import ObjectiveConfig, tap_sums
from interstack.distillation.optimizer import OptimizerConfig
from interstack.distillation.precision import check_precision
from interstack.distillation.steps import DistillationSteps
from interstack.distillation.structure import CHECKPOINT_KEY, rebuild_student, student_structure
from interstack.distillation.targets import FrameGrid, TargetNorm, align_frames
from interstack.growth.averages import averages_of
from interstack.growth.plan import GrowthPlan
from interstack.models.build import build_student, load_teacher, taps_of
from interstack.models.compiling import check_can_compile
from interstack.models.config import StudentConfig, TeacherConfig
from interstack.models.front_end import frame_hop, receptive_field
from interstack.models.student import Student, StudentOutput
from interstack.models.teacher import Teacher, TeacherOutput
from interstack.target_cache.cache import TargetCache
from interstack.target_cache.teacher import CachedTeacher

ConfigT = TypeVar("ConfigT")
SharedT = TypeVar("SharedT")


class Distillation(DistillationSteps):
    """Distils a teacher into a student whose depth ``InterleavedStacking`` lets grow.

    The module owns the student's depth: it goes into every checkpoint under a key of its own and is
    rebuilt before the weights are loaded. The teacher is loaded at ``setup``, is no submodule, and
    so is never trained, wrapped or saved; copies of the module have the very same one.

    Args:
        teacher: The speech foundation model.
        student: The student's shape.
        objective: What is minimised.
        optimizer: How.
        initial_depth: Encoder layers of the first stage; the command line takes it from
            ``growth.depths``.
        non_finite: What a training batch whose loss is not finite does: ``stop`` the run and name
            the utterances, or ``skip``: it is left out, named in the log and counted in
            ``train/skipped_batches``. Validation and test always stop. A GPU is kept waiting by
            ``skip`` at each batch, by ``stop`` now and then.
        compile_layers: Compile the layers of student and teacher when a fit begins. What is trained
            is the same, so a resumed run may change it.
    """

    target_norm: TargetNorm

    def __init__(
        self,
        teacher: TeacherConfig,
        student: StudentConfig = StudentConfig(),  # noqa: B008, frozen
        objective: ObjectiveConfig = ObjectiveConfig(),  # noqa: B008, frozen
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008, frozen
        initial_depth: int = 3,
        non_finite: NonFinitePolicy = "stop",
        compile_layers: bool = False,
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
        self.learning_rate_scale = 1.0
        # No hyper-parameter: those of a checkpoint overrule the command line, and a run that has
        # stopped at a batch has to go on without it.
        self.non_finite = NonFiniteBatches(non_finite)
        self.compile_layers = compile_layers
        # in a list, so that torch does not register it
        self._teacher: _Shared[Teacher | CachedTeacher] = _Shared()

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

    def configure_callbacks(self) -> list[L.Callback]:
        """Refuse callbacks that can't work here; add what an average of the weights needs.

        Lightning calls this before anything is loaded or set up.

        Raises:
            ConfigurationError: If a fit's callbacks include one of those.
        """
        if self.trainer.state.fn == "fit":
            check_callbacks(self.trainer)
        return [] if averaging_callback(self.trainer) is None else [KeepAverages()]

    def configure_model(self) -> None:
        """Build the student, unless it is there, for the teacher or the cache of its targets.

        Lightning calls this after ``setup``, and callbacks that copy the module before. Without a
        Trainer nothing is built: ``load_from_checkpoint`` rebuilds what the checkpoint describes.
        """
        if self._trainer is not None:
            self._build()

    def setup(self, stage: str) -> None:
        """Load the teacher, unless its targets are cached; build the student, unless it is there.

        Raises:
            ConfigurationError: If settings, teacher, cache and data don't fit each other.
            TeacherError: If the teacher can't be loaded.
        """
        if self._trainer is not None:  # there is none in a notebook
            check_precision(str(self._trainer.precision))
        self._build()
        if stage != "predict":
            self._load_teacher()
        datamodule: Any = getattr(self._trainer, "datamodule", None)
        targets = self._cached_targets()
        if targets is not None:
            targets.with_features = self.student.freeze_front_end
        if datamodule is not None:
            check_lengths(datamodule, self.student, self._teacher[0] if self._teacher else None)

    def _build(self) -> None:
        """Make a fresh student, unless there is one."""
        if not hasattr(self, "student"):
            self._load_teacher()
            self._adopt(build_student(self.student_config, self.initial_depth, self.teacher))

    def _cached_targets(self) -> TargetCache | None:
        datamodule: Any = getattr(self._trainer, "datamodule", None)
        targets: TargetCache | None = getattr(datamodule, "targets", None)
        return targets

    def _load_teacher(self) -> None:
        """Load the teacher, or what stands in for it, unless it is there."""
        if not self._teacher:
            self._teacher.append(self._find_teacher(self._cached_targets()))

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
        """Rebuild the student at the checkpoint's depth; Lightning loads the weights next.

        So are its averages, whose weights their callback loads after that.

        Raises:
            ConfigurationError: If the run kept an average, and is resumed without.
        """
        self._adopt(rebuild_student(checkpoint[CHECKPOINT_KEY]).to(self.device))
        self.non_finite.load(checkpoint)
        if self._trainer is not None:
            check_goes_on(self._trainer, checkpoint)
            for average in averages_of(self._trainer, self):
                assert isinstance(average.module, Distillation)
                average.module._adopt(copy.deepcopy(self.student))
                average.module.to(average.module.device)

    def on_fit_start(self) -> None:
        """Move the teacher, compile the layers, measure the targets' channels: as is asked for."""
        self.non_finite.forget()
        self.compile_as_asked()
        self._move_teacher()
        if self.target_norm.wants_statistics:
            seconds, policy = self.objective.target_norm_seconds, self.non_finite.policy
            self.target_norm.measure(measure_channels(self.trainer, self, seconds, policy))

    def compile_as_asked(self) -> None:
        """Compile the layers of student and teacher, on the device that they are used on.

        Raises:
            ConfigurationError: If it is asked for and can't be done here.
        """
        if self.compile_layers:
            check_can_compile(self.device.type)
            self.student.compile_layers()
            if isinstance(self.teacher, Teacher):
                self.teacher.compile_layers()

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
        return self.study(batch, self.tell(batch))

    def study(self, batch: Batch, told: TeacherOutput) -> tuple[StudentOutput, tuple[Tensor, ...]]:
        """Return the same for what the teacher has said."""
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

    def batch_loss(self, batch: Batch, told: TeacherOutput | None = None) -> BatchLoss:
        """Return what the loss of a batch is made of, in fp32 whatever the models compute in.

        Args:
            batch: The batch.
            told: What the teacher says of it; asked if None.
        """
        output, targets = self(batch) if told is None else self.study(batch, told)
        with torch.autocast(self.device.type, enabled=False):
            normalised = self.target_norm(targets)
            sums = tap_sums(output.predictions, normalised, output.mask, self.objective)
        return BatchLoss(sums, targets, output, batch)


class _Shared(list[SharedT]):
    """A list that copies of its owner share instead of copying what is in it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the list itself."""
        del memo
        return self


def _config(kind: type[ConfigT], value: ConfigT | dict[str, Any]) -> ConfigT:
    """Return settings as their class, also where they come as a dictionary from a checkpoint."""
    return kind(**value) if isinstance(value, dict) else value
