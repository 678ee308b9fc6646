"""Small runs in which some batches are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import lightning as L

from interstack.data.batch import Batch
from interstack.distillation.module import Distillation
from interstack.distillation.optimizer import OptimizerConfig
from interstack.models.config import TeacherConfig
from tests.distillation.small_runs import SMALL, loader, training_batches

NAN: Final = float("nan")


def skipping(teacher_directory: Path, **settings: Any) -> Distillation:  # noqa: ANN401
    """A module that skips what is not finite, with a weight decay that no skipped step may do."""
    teacher = TeacherConfig(str(teacher_directory), (2, 4))
    optimizer = OptimizerConfig(learning_rate=3e-3, weight_decay=0.1, warmup=0.0)
    return Distillation(
        teacher,
        SMALL,
        **{"optimizer": optimizer, "initial_depth": 2, "non_finite": "skip"} | settings,
    )


def train(
    trainer: L.Trainer,
    module: Distillation,
    batches: Sequence[Batch],
    checkpoint: Path | None = None,
) -> None:
    """Train on batches, and validate on another one, since validation stops at a bad one."""
    trainer.fit(module, loader(batches), loader(training_batches(1)), ckpt_path=checkpoint)


def spoilt(batch: Batch, row: int = 0, name: str = "bad") -> Batch:
    """The same batch with one sample of an utterance that is not finite."""
    waveforms = batch.waveforms.clone()
    waveforms[row, 3000] = NAN
    ids = tuple(name if i == row else each for i, each in enumerate(batch.ids))
    return batch._replace(waveforms=waveforms, ids=ids)
