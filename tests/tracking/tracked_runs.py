"""Runs that grow twice within seconds, and callbacks that watch them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import lightning as L
import numpy as np
import torch

from interstack.data.batch import Batch
from interstack.data.datamodule import SpeechDataModule
from interstack.data.loader import SpeechLoader
from interstack.distillation.module import Distillation

SPEECH: Final = Path(__file__).parents[2] / "assets/speech/LibriSpeech"
CONV_DIM: Final = (8,) * 7
DEPTHS: Final = (2, 3, 4)
NUM_STEPS: Final = 9  # three a stage
EPOCH_BATCHES: Final = 2


class Run(NamedTuple):
    """All that a fit needs."""

    trainer: L.Trainer
    module: Distillation
    data: SpeechDataModule

    def fit(self, checkpoint: Path | None = None) -> None:
        """Train, from a checkpoint on if one is given."""
        self.trainer.fit(self.module, self.data, ckpt_path=checkpoint)

    def validate(self) -> float:
        """Return the validation loss as Lightning measures it."""
        (values,) = self.trainer.validate(self.module, self.data, verbose=False)
        return values["val/loss"]


MakeRun = Callable[..., Run]


class RandomLoader(SpeechLoader):
    """A loader that draws from the global random states, as many do."""

    def __iter__(self) -> Iterator[Batch]:
        """Draw from each, then go through the batches."""
        torch.rand(())
        np.random.rand()
        random.random()
        yield from super().__iter__()


class RandomData(SpeechDataModule):
    """Validates through a ``RandomLoader``."""

    def val_dataloader(self) -> SpeechLoader:
        """Return the same batches in such a loader."""
        return RandomLoader(super().val_dataloader().dataset, num_workers=0, seed=0)


class Witness(L.Callback):
    """Adds up the audio of the batches that were trained on."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Note the seconds of a batch."""
        del trainer, pl_module, outputs, batch_idx
        self.seconds.append(sum(batch.num_samples.tolist()) / 16_000)
