"""Speech in: folders, shards or hub datasets to batches of padded waveforms."""

from __future__ import annotations

from interstack.data.base import SpeechSource
from interstack.data.batch import Batch
from interstack.data.datamodule import SpeechDataModule
from interstack.data.folder import LibriSpeechFolder
from interstack.data.hub import HubDataset
from interstack.data.shards import Shards

__all__ = [
    "Batch",
    "HubDataset",
    "LibriSpeechFolder",
    "Shards",
    "SpeechDataModule",
    "SpeechSource",
]
