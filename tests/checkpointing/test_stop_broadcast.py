"""Lightning's broadcast of SIGTERM, which would make every rank wait at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from interstack.checkpointing.callback import Checkpoints
from tests.distillation.small_runs import fit, make_module, make_trainer, training_batches


@pytest.mark.parametrize(("ours", "asks"), [(True, 0), (False, 2)])
def test_it_runs_only_without_checkpoints(
    ours: bool,
    asks: int,
    teacher_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With them, the ranks agree on signals over their processors."""
    asked: list[int] = []
    monkeypatch.setattr(_TrainingEpochLoop, "_broadcast_sigterm_tensor", lambda _: asked.append(1))

    class AsManyRanksDo(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            loop: Any = trainer.fit_loop.epoch_loop
            loop._broadcast_sigterm_tensor()

    callbacks: list[L.Callback] = [AsManyRanksDo()]
    if ours:
        callbacks.append(Checkpoints(dirpath=str(tmp_path)))
    trainer = make_trainer(*callbacks, depths=(2,), max_steps=2, enable_checkpointing=ours)
    fit(trainer, make_module(teacher_directory), training_batches(2))
    assert len(asked) == asks
