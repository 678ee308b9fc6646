"""The LightningModule: a frozen teacher, a growing student, and the loss between them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Self, TypeVar

import lightning as L
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from interstack.data.batch import Batch
from interstack.data.loader import SpeechLoader
from interstack.distillation.averaging import (
    KeepAverages,
    averaging_callback,
    check_averaging_continues,
    check_callbacks,
)
from interstack.distillation.learning_rate_search import (
    check_rate_was_found,
    searches_learning_rate,
)
from interstack.distillation.metrics import DistillationLoss
from interstack.distillation.nan_guard import (
    BatchLoss,
    NonFiniteBatches,
    NonFinitePolicy,
    NumberFormats,
    step_is_logged,
)
from interstack.distillation.objective import ObjectiveConfig, tap_sums
from interstack.distillation.optimizer import OptimizerConfig, make_optimizer
from interstack.distillation.precision import check_computation, check_precision
from interstack.distillation.reduction import AccumulationWindow, rank_loss
from interstack.distillation.resume import FINAL_NORM_KEY, check_front_end, check_top_target
from interstack.distillation.targets import FrameGrid, TargetNorm, align_frames, measure_channels
from interstack.distillation.teachers import check_lengths, open_front_end, open_teacher
from interstack.growth.averages import averages_of
from interstack.growth.callback import growth_of
from interstack.growth.plan import GrowthPlan
from interstack.growth.schedule import run_progress
from interstack.models.config import StudentConfig, TeacherConfig
from interstack.models.factory import build_student
from interstack.models.front_end import frame_hop, receptive_field
from interstack.models.precision import PrecisionReport
from interstack.models.student import (
    CHECKPOINT_KEY,
    Student,
    StudentOutput,
    rebuild_student,
    student_structure,
)
from interstack.models.teacher import Teacher, TeacherOutput
from interstack.models.windows import WindowedOutput
from interstack.target_cache.reader import CachedTeacher, TargetCache
from interstack.utils.compiling import check_can_compile

ConfigT = TypeVar("ConfigT")
SharedT = TypeVar("SharedT")

FOUND_RATE_KEY = "interstack_learning_rate"
"""Of a checkpoint: the peak learning rate, where a search has found another than the settings'."""


class Distillation(L.LightningModule):
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
            the utterances, or ``skip``: it is skipped, named in the log and counted in
            ``train/skipped_batches``. Validation and test always stop. A GPU is kept waiting by
            ``skip`` at each batch, by ``stop`` now and then.
        compile_layers: Compile the layers of student and teacher when a fit starts. What is trained
            is the same, so a resumed run may change it.
        precision_check: When a fit or a cache starts, compare one batch in the chosen number
            formats with float32, layer by layer, and stop where the difference is more than
            rounding. It takes seconds, and nothing where all is float32; false is refused there.
    """

    student: Student
    target_norm: TargetNorm
    validation_loss: DistillationLoss
    test_loss: DistillationLoss
    latest_loss: Tensor | None = None
    """Of the last optimizer step (of its batches so far), over all ranks, on the device."""

    def __init__(
        self,
        teacher: TeacherConfig,
        student: StudentConfig = StudentConfig(),  # noqa: B008, frozen
        objective: ObjectiveConfig = ObjectiveConfig(),  # noqa: B008, frozen
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008, frozen
        initial_depth: int = 3,
        non_finite: NonFinitePolicy = "stop",
        compile_layers: bool = False,
        precision_check: bool = True,
    ) -> None:
        super().__init__()
        # Checkpoints hold the settings as plain dictionaries, and come back as such. Those are read
        # as they are, whatever an earlier version accepted; others have to have an effect.
        for section in (student, objective, optimizer):
            if not isinstance(section, dict):
                section.check_effects()
        if not isinstance(teacher, dict):
            teacher.check_effects(None if isinstance(student, dict) else student.front_end_source)
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
        self._found_learning_rate: float | None = None
        self.window = AccumulationWindow()
        # No hyper-parameter: those of a checkpoint overrule the command line, and a run that has
        # stopped at a batch has to continue without it.
        self.non_finite = NonFiniteBatches(non_finite)
        self.compile_layers = compile_layers
        self.precision_check = precision_check
        self.precision_reports: list[PrecisionReport] = []
        # in a list, so that torch does not register it
        self._teacher: _Shared[Teacher | CachedTeacher] = _Shared()

    # Structure ------------------------------------------------------------------------------------

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
    def learning_rate(self) -> float:
        """The peak learning rate, ``optimizer.learning_rate``, or what a search has put there.

        ``LearningRateFinder`` reads and sets it. What it has found goes into checkpoints, and not
        into the hyper-parameters, which are the settings that a resumed run is compared with.
        """
        return self.optimizer_config.learning_rate

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self.optimizer_config = replace(self.optimizer_config, learning_rate=rate)
        self._found_learning_rate = rate

    @property
    def teacher(self) -> Teacher | CachedTeacher:
        """The frozen teacher, or the cache that stands in for it; there after ``setup``."""
        return self._teacher[0]

    def grow(self, plan: GrowthPlan) -> None:
        """Grow the student in place; the optimizer has to be made again."""
        self.check_pending()
        self.student.grow(plan)

    def on_growth_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the losses of the last stage before ``InterleavedStacking`` grows the student."""
        del trainer, pl_module
        self.check_pending()

    def on_growth_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, plan: GrowthPlan
    ) -> None:
        """Do nothing: the student has moved its taps."""

    # Set-up ---------------------------------------------------------------------------------------

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
            # what is to be predicted is the student's alone
            teacher = self._teacher[0] if self._teacher and stage != "predict" else None
            check_lengths(datamodule, self.student, teacher)

    def _build(self) -> None:
        """Make a fresh student, unless there is one."""
        if not hasattr(self, "student"):
            self._load_teacher()
            front_end = open_front_end(
                self.teacher_config, self.student_config, self._cached_targets()
            )
            self._adopt(
                build_student(self.student_config, self.initial_depth, self.teacher, front_end)
            )

    def _cached_targets(self) -> TargetCache | None:
        datamodule: Any = getattr(self._trainer, "datamodule", None)
        targets: TargetCache | None = getattr(datamodule, "targets", None)
        return targets

    def _load_teacher(self) -> None:
        """Load the teacher, or what stands in for it, unless it is there."""
        if not self._teacher:
            self._teacher.append(
                open_teacher(
                    self.teacher_config,
                    self.student_config,
                    self.initial_depth,
                    self._cached_targets(),
                )
            )

    def _adopt(self, student: Student) -> None:
        """Take a student of any structure, with what hangs on its taps."""
        self.student = student
        num_taps = len(student.teacher_taps)
        self.target_norm = TargetNorm(self.objective, num_taps, student.teacher_width)
        self.validation_loss = DistillationLoss(self.objective, num_taps)
        self.test_loss = DistillationLoss(self.objective, num_taps)

    def on_fit_start(self) -> None:
        """Move the teacher; compile layers, check precision and measure channels where required.

        Raises:
            ConfigurationError: If a search for a learning rate has found none.
        """
        check_rate_was_found(self.trainer, self._found_learning_rate)
        self.non_finite.forget()
        self.window.clear()
        self.compile_models()
        self._move_teacher()
        self.precision_reports = (
            check_computation(self.trainer, self) if self.precision_check else []
        )
        if self.target_norm.wants_statistics:
            seconds, policy = self.objective.target_norm_seconds, self.non_finite.policy
            sums = measure_channels(self.trainer, self, seconds, policy, self.number_formats)
            self.target_norm.measure(sums)

    def on_train_start(self) -> None:
        """Begin a search for a learning rate as a fit: it comes before ``on_fit_start``."""
        if searches_learning_rate(self.trainer):
            self.on_fit_start()

    def compile_models(self) -> None:
        """Compile the layers of student and teacher, on the device that they are used on.

        Raises:
            ConfigurationError: If it is required and can't be done here.
        """
        if self.compile_layers:
            check_can_compile(self.device.type)
            self.student.compile_layers()
            if isinstance(self.teacher, Teacher):
                self.teacher.compile_layers()

    def _move_teacher(self) -> None:
        for teacher in self._teacher:
            teacher.to(self.device)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make a fresh optimizer over what is trained; also called after each growth step."""
        return make_optimizer(self.named_parameters(), self.optimizer_config, self.layer_prefix)

    # Checkpoints ----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the student's structure and the number of skipped batches.

        Raises:
            DataError: If the run is to stop at a batch that was trained on, but not checked.
        """
        self.check_pending()
        checkpoint[CHECKPOINT_KEY] = student_structure(self.student)
        checkpoint[FINAL_NORM_KEY] = True
        if self._found_learning_rate is not None:
            checkpoint[FOUND_RATE_KEY] = self._found_learning_rate
        self.non_finite.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rebuild the student at the checkpoint's depth; Lightning loads the weights next.

        A student of that very structure stays: a search for a learning rate goes back to its start
        in the middle of a fit, when an optimizer has the student's parameters. Averages are rebuilt
        too, and their callback loads their weights after that.

        Raises:
            ConfigurationError: If the run kept an average, and is resumed without; or if it was
                trained on another top target than this version's.
        """
        if self._trainer is not None and self._teacher:
            if self._trainer.state.fn == "fit":
                check_top_target(checkpoint, self.teacher)
            if self.student_config.front_end_source is not None and hasattr(self, "student"):
                check_front_end(checkpoint, self.student, self.student_config.front_end_source)
        structure = checkpoint[CHECKPOINT_KEY]
        if not hasattr(self, "student") or student_structure(self.student) != structure:
            self._adopt(rebuild_student(structure).to(self.device))
        if FOUND_RATE_KEY in checkpoint:
            self.learning_rate = checkpoint[FOUND_RATE_KEY]
        self.non_finite.load(checkpoint)
        if self._trainer is not None:
            check_averaging_continues(self._trainer, checkpoint)
            for average in averages_of(self._trainer, self):
                assert isinstance(average.module, Distillation)
                average.module._adopt(copy.deepcopy(self.student))
                average.module.to(average.module.device)

    # Loss -----------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> tuple[StudentOutput, tuple[Tensor, ...]]:
        """Return the student's output and the targets before their normalisation, one a tap."""
        return self.student_forward(batch, self.teacher_forward(batch))

    def teacher_forward(self, batch: Batch, *, every_layer: bool = False) -> TeacherOutput:
        """Return what the teacher outputs for a batch: now, or when the cache was made.

        A frozen front end's features are part of it, whoever computes them.

        Args:
            batch: The batch.
            every_layer: Return all hidden states of a teacher that is not cached.
        """
        teacher, extracts = self.teacher, self.extracts_features
        teacher_output: TeacherOutput
        if isinstance(teacher, CachedTeacher):
            assert batch.targets is not None
            teacher_output = teacher.unpack(batch.targets)
        else:
            teacher_output = teacher(
                batch.waveforms,
                batch.num_samples,
                with_features=self.student.freeze_front_end and not extracts,
                every_layer=every_layer,
            )
        if extracts:
            features = self.student.front_end_features(batch.waveforms, batch.num_samples)
            teacher_output = teacher_output._replace(features=features)
        return teacher_output

    def student_forward(
        self, batch: Batch, teacher_output: TeacherOutput
    ) -> tuple[StudentOutput, tuple[Tensor, ...]]:
        """Return the same for what the teacher has said."""
        output = self.student(batch.waveforms, batch.num_samples, teacher_output.features)
        targets = align_frames(
            teacher_output.hidden_states,
            teacher_output.num_frames,
            FrameGrid(self.teacher.first_frame_centre, self.teacher.frame_hop),
            FrameGrid(
                (receptive_field(self.student.config) - 1) / 2, frame_hop(self.student.config)
            ),
            output.mask.shape[1],
        )
        return output, targets

    @property
    def extracts_features(self) -> bool:
        """Whether the student's own frozen front end is run: no teacher or cache gives features."""
        if not self.student.freeze_front_end:
            return False
        if isinstance(self.teacher, CachedTeacher):
            return not self.teacher.gives_features
        return self.student_config.front_end_source is not None

    @property
    def number_formats(self) -> NumberFormats:
        """What the loss is computed with."""
        precision = "32-true" if self._trainer is None else str(self._trainer.precision)
        return NumberFormats(self.teacher_config.dtype, precision, self.objective.target_norm)

    def batch_loss(self, batch: Batch, teacher_output: TeacherOutput | None = None) -> BatchLoss:
        """Return what the loss of a batch is made of, in fp32 whatever the models compute in.

        Args:
            batch: The batch.
            teacher_output: The teacher's output for it; computed here by default.
        """
        output, targets = (
            self(batch) if teacher_output is None else self.student_forward(batch, teacher_output)
        )
        # Squares of a 16-bit target's outliers would overflow, and small differences vanish.
        with torch.autocast(self.device.type, enabled=False):
            normalised = self.target_norm(targets)
            sums = tap_sums(output.predictions, normalised, output.mask, self.objective)
        return BatchLoss(sums, targets, output, batch, self.number_formats)

    # Training -------------------------------------------------------------------------------------

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
        # Also for a batch that will be skipped: all ranks divide by the same number.
        self.window.open(loss)
        if self.non_finite.defers(self.trainer):
            if self.non_finite.defer(mine, loss.loss, self.trainer):
                self.check_pending()
        elif not bool(torch.isfinite(loss.loss)):
            step = self.trainer.global_step
            return self.non_finite.refuse(mine, step, self.student.parameters())
        self.non_finite.count()
        # Only now: a skipped batch has returned, and is in no mean that is logged.
        self.latest_loss, by_tap = self.window.add(loss, self.objective)
        if step_is_logged(self.trainer):
            self._log_losses("train", self.latest_loss, by_tap, on_step=True)
        else:  # for callbacks that read it from the Trainer
            self.log("train/loss", self.latest_loss, on_step=True, on_epoch=False, batch_size=1)
        return loss.to_minimise

    def on_after_backward(self) -> None:
        """Bring the gradients of a complete window to the mean over its frames."""
        if not self.trainer.fit_loop._should_accumulate():
            self.window.finish(self.parameters(), self.trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let a step without a batch that counts change nothing, and log no loss."""
        self.non_finite.close_window(self.trainer, optimizer)
        if self.non_finite.policy == "skip":
            self._log_numbers({"train/skipped_batches": self.non_finite.skipped})

    def check_pending(self) -> None:
        """Wait for the device if losses of training batches are still to be checked.

        Raises:
            DataError: On all ranks, if one of them is not finite.
        """
        self.non_finite.check(self._recompute_loss)

    @torch.no_grad()
    def _recompute_loss(self, batch: Batch) -> BatchLoss:
        """Return what the loss of a training batch is made of, between two steps."""
        with self.trainer.precision_plugin.train_step_context():
            return self.batch_loss(batch)

    def on_train_end(self) -> None:
        """Check the last losses."""
        self.check_pending()

    # Validation, test, prediction -----------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Move the teacher; forget what a validation that broke off has left."""
        if self.trainer.state.fn == "fit":
            self.check_pending()
        self._move_teacher()
        self.validation_loss.reset()

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

    def on_test_start(self) -> None:
        """Move the teacher; forget what a test that broke off has left."""
        self._move_teacher()
        self.test_loss.reset()

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
                self.student.model,
                waveform,
                window,
                normalises_waveform=self.student.normalises_waveform,
                precision=self.trainer.precision_plugin.predict_step_context,
            )
        output: StudentOutput = self.student(batch.waveforms, batch.num_samples)
        return output

    # Logging --------------------------------------------------------------------------------------

    def _log_metric(self, prefix: str, metric: DistillationLoss) -> None:
        loss, by_tap = metric.compute()
        # torchmetrics drops the dimension of a single tap
        self._log_losses(prefix, loss, by_tap.reshape(-1), on_step=False)

    def _log_losses(self, prefix: str, loss: Tensor, by_tap: Tensor, *, on_step: bool) -> None:
        """Log the loss, and each tap's distance under the teacher layer's index."""
        names = (f"{prefix}/loss_tap_{tap}" for tap in self.student.teacher_taps)
        values = dict(zip(names, by_tap.unbind(), strict=True)) | {f"{prefix}/loss": loss}
        self.log_dict(values, on_step=on_step, on_epoch=not on_step, batch_size=1)

    def _log_numbers(self, numbers: Mapping[str, float]) -> None:
        """Log what the processor knows; filled in on the device, which a copy would wait for."""
        if step_is_logged(self.trainer):
            self.log_dict(
                {
                    name: torch.full((), float(number), device=self.device)
                    for name, number in numbers.items()
                }
            )


class _Shared(list[SharedT]):
    """A list that copies of its owner share instead of copying what is in it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the list itself."""
        del memo
        return self


def _config(kind: type[ConfigT], value: ConfigT | dict[str, Any]) -> ConfigT:
    """Return settings as their class, also where they come as a dictionary from a checkpoint."""
    return kind(**value) if isinstance(value, dict) else value
