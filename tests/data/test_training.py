"""The data module under a real trainer: its epochs, and an epoch that is resumed."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from interstack.data import Batch, LibriSpeechFolder, SpeechDataModule
from interstack.errors import ConfigurationError
from tests.data.corpora import SPEECH, files_of, make_data_module, shards_in

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fewer than the logging interval", "ignore:GPU available"
)


class _Ids(L.LightningModule):
    """Notes the utterances of every epoch; saves the run after the fifth batch of epoch 1."""

    def __init__(self, checkpoint: Path | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.checkpoint = checkpoint
        self.epochs: dict[int, list[tuple[str, ...]]] = {}

    def training_step(self, batch: Batch, _: int) -> Tensor:
        self.epochs.setdefault(self.current_epoch, []).append(batch.ids)
        return self.weight * batch.seconds

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        del outputs, batch
        if self.checkpoint and (self.current_epoch, batch_idx) == (1, 4):
            self.trainer.save_checkpoint(self.checkpoint)

    def validation_step(self, batch: Batch, _: int) -> None:
        assert batch.ids

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _trainer(**settings: int) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(
        accelerator="cpu", enable_model_summary=False, use_distributed_sampler=False,
        **quiet | settings,
    )  # fmt: skip


def test_a_trainer_sees_every_utterance_once_an_epoch_reshuffled() -> None:
    """Under a real trainer each epoch has the same utterances in another order."""
    model = _Ids()
    trainer = _trainer(max_epochs=3, reload_dataloaders_every_n_epochs=1)
    module = SpeechDataModule(LibriSpeechFolder(SPEECH), num_workers=0)
    trainer.fit(model, datamodule=module)
    everything = [utterance.stem for utterance in files_of(SPEECH)]
    assert len(everything) == module.report()["train/utterances"]
    epochs = [[id_ for ids in batches for id_ in ids] for batches in model.epochs.values()]
    assert [sorted(ids) for ids in epochs] == [everything] * 3
    assert len(set(map(tuple, epochs))) == 3


def test_a_trainer_that_would_repeat_an_epoch_is_refused() -> None:
    """Lightning keeps the first epoch's loader unless told otherwise."""
    module = make_data_module(SPEECH)
    module.trainer = _trainer(max_epochs=2)
    with pytest.raises(ConfigurationError, match="reload_dataloaders_every_n_epochs is 0"):
        module.train_dataloader()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_trainer_resumes_an_epoch_where_it_was(
    packed: Path, tmp_path: Path, streamed: bool
) -> None:
    """It restores the loader before it makes an iterator, and counts on from there."""

    def fit(model: _Ids, resume_from: Path | None = None) -> _Ids:
        source = shards_in(packed) if streamed else LibriSpeechFolder(SPEECH)
        data = SpeechDataModule(
            source, 20.0, max_seconds=3.0, num_workers=0, epoch_batches=12 if streamed else None
        )
        trainer = _trainer(max_epochs=3, reload_dataloaders_every_n_epochs=1, limit_val_batches=1)
        trainer.fit(model, datamodule=data, ckpt_path=resume_from, weights_only=True)
        return model

    checkpoint = tmp_path / "middle.ckpt"
    uninterrupted = fit(_Ids(checkpoint))
    resumed = fit(_Ids(), resume_from=checkpoint)
    assert resumed.epochs[1] == uninterrupted.epochs[1][5:]
    assert resumed.epochs[2] == uninterrupted.epochs[2]
