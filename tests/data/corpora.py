"""What the data tests share: the embedded speech, and looking at batches."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from interstack.data import (
    HubDataset,
    LibriSpeechFolder,
    Shards,
    SpeechDataModule,
    SpeechSource,
)
from interstack.data.batch import Batch

SPEECH = Path(__file__).parents[2] / "assets" / "speech"
"""Holds the embedded LibriSpeech; read only."""


def make_data_module(source: SpeechSource | Path, **settings: Any) -> SpeechDataModule:  # noqa: ANN401
    """Makes a data module set up for training, over a source or a folder, without workers."""
    if isinstance(source, Path):
        source = LibriSpeechFolder(source)
    module = SpeechDataModule(source, **{"batch_seconds": 30.0, "num_workers": 0} | settings)
    module.setup("fit")
    return module


def files_of(corpus: Path, split: str = "train-clean-100") -> list[Path]:
    """Lists a split's audio files, sorted."""
    return sorted((corpus / "LibriSpeech" / split).rglob("*.flac"))


EVERYTHING = {file.stem for file in files_of(SPEECH)}
"""The utterances of the embedded training split."""


def ids_of(batches: Iterable[Batch]) -> list[str]:
    """Lists the utterances of batches, in order."""
    return [id_ for batch in batches for id_ in batch.ids]


def equal_batches(first: Iterable[Batch], second: Iterable[Batch]) -> bool:
    """Tells whether two sequences of batches hold the same bits in the same order."""
    return all(
        one.ids == other.ids
        and one.waveforms.equal(other.waveforms)
        and one.num_samples.equal(other.num_samples)
        for one, other in zip(first, second, strict=True)
    )


def shards_in(packed: Path | str) -> Shards:
    """Reads all splits of a folder, or a URL, that `pack` wrote."""
    return Shards([f"{packed}/train"], [f"{packed}/validation"], [f"{packed}/test"])


def hub_over(folder: Path) -> HubDataset:
    """Reads the splits of a dataset whose audio is in the column sound."""
    return HubDataset(str(folder), None, ["train"], ["validation"], [], audio_column="sound")


def make_stream_module(source: SpeechSource, **settings: Any) -> SpeechDataModule:  # noqa: ANN401
    """Makes a data module over a stream, set up for training, of 12 batches an epoch."""
    return make_data_module(source, **{"epoch_batches": 12} | settings)
