"""Small runs on real speech: a module, batches and a Trainer that cost next to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader

from interstack.data.batch import Batch
from interstack.distillation.module import Distillation
from interstack.distillation.objective import ObjectiveConfig
from interstack.distillation.optimizer import OptimizerConfig
from interstack.growth.callback import InterleavedStacking
from interstack.models.config import StudentConfig, TeacherConfig
from tests.models.families import pad, read_speech

SMALL: Final = StudentConfig(
    hidden_size=16,
    intermediate_size=32,
    num_attention_heads=2,
    conv_dim=(8,) * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
    dropout=0.0,
)
"""The paper's student but for its width."""


def small_student(**changes: Any) -> StudentConfig:  # noqa: ANN401, StudentConfig's
    """Return the small student with changes; a front end that is the teacher's has no settings."""
    shape = {} if changes.get("front_end", "own") == "own" else {"conv_dim": (512,) * 7}
    return StudentConfig(**vars(SMALL) | shape | changes)


def make_batch(clips: Sequence[Tensor], names: str = "abcdefgh") -> Batch:
    """Pad clips into a batch; their names are letters."""
    waveforms, num_samples = pad(list(clips))
    return Batch(waveforms, num_samples, tuple(names[: len(clips)]))


def loader(batches: Sequence[Batch]) -> DataLoader[Batch]:
    """Serve batches as they are, in order."""
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def training_batches(number: int) -> list[Batch]:
    """So many batches of two clips each, all of real speech."""
    clips = read_speech(*([0.6, 0.8] * number))
    return [make_batch(clips[2 * batch : 2 * batch + 2]) for batch in range(number)]


def make_module(
    teacher_directory: Path,
    *,
    taps: tuple[int, ...] = (2, 4),
    student: StudentConfig = SMALL,
    objective: ObjectiveConfig = ObjectiveConfig(),  # noqa: B008, frozen
    optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008, frozen
    initial_depth: int = 2,
) -> Distillation:
    """A LightningModule for the small teacher."""
    teacher = TeacherConfig(str(teacher_directory), taps)
    return Distillation(teacher, student, objective, optimizer, initial_depth)


def make_trainer(
    *callbacks: L.Callback,
    depths: tuple[int, ...] = (2, 4),
    growth: dict[str, Any] | None = None,
    **settings: Any,  # noqa: ANN401, the Trainer's
) -> L.Trainer:
    """A quiet Trainer on the CPU that grows its module through these depths."""
    stacking = InterleavedStacking(depths, **growth or {})
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(callbacks=[*callbacks, stacking], **quiet | settings)


def fit(
    trainer: L.Trainer,
    module: Distillation,
    batches: Sequence[Batch],
    checkpoint: Path | None = None,
) -> None:
    """Train on batches and validate on the first of them."""
    trainer.fit(module, loader(batches), loader(batches[:1]), ckpt_path=checkpoint)


class SaveAfterFirstEpoch(L.Callback):
    """Writes a checkpoint between the first epoch and the next one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write it."""
        del pl_module
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)
