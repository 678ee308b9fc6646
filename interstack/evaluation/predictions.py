"""Where ``predict`` puts the student's hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from safetensors.torch import save

from interstack.checkpointing.atomic import write_whole
from interstack.checkpointing.disk import write_errors
from interstack.data.batch import Batch
from interstack.models.student import StudentOutput


class SaveHiddenStates(BasePredictionWriter):
    """Writes ``<run>/hidden_states/<utterance>.safetensors``, one file an utterance.

    Each holds one tensor, ``hidden_states``: (depth + 1, frames, width), padding cut off.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: StudentOutput,
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write a batch's utterances."""
        del pl_module, batch_indices, batch_idx, dataloader_idx
        directory = Path(trainer.default_root_dir) / "hidden_states"
        hidden_states: torch.Tensor = torch.stack(prediction.hidden_states)
        for row, name in enumerate(batch.ids):
            frames = int(prediction.num_frames[row])
            clip: dict[str, Any] = {"hidden_states": hidden_states[:, row, :frames].cpu().clone()}
            path = directory / f"{name.replace('/', '_')}.safetensors"
            with write_errors(path, "free space, then give the same command again"):
                write_whole(path, save(clip, metadata={"id": name}))
