"""Speech in: folders, shards or hub datasets to batches of padded waveforms."""

from __future__ import annotations

from interstack.data.audio import Utterance, read_header
from interstack.data.base import SpeechSource, Split
from interstack.data.batch import Batch
from interstack.data.datamodule import SpeechDataModule
from interstack.data.folder import FileSource, LibriSpeechFolder
from interstack.data.hub import HubDataset
from interstack.data.shards import Shards

__all__ = [
    "Batch",
    "FileSource",
    "HubDataset",
    "LibriSpeechFolder",
    "Shards",
    "SpeechDataModule",
    "SpeechSource",
    "Split",
    "Utterance",
    "read_header",
]
