"""The embedded speech in other shapes: one that a test may damage, shards, a dataset."""

from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import pytest

from interstack.data import LibriSpeechFolder
from interstack.data.shards import pack
from tests.data.corpora import EVERYTHING, SPEECH, files_of


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A copy of the embedded validation split, as train-clean-100 and as dev-clean."""
    root = tmp_path / "corpus"
    for split in ("train-clean-100", "dev-clean"):
        shutil.copytree(SPEECH / "LibriSpeech" / "dev-clean", root / "LibriSpeech" / split)
    return root


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded speech as shards of 30 utterances: 7 for training, 2 for validation."""
    output = tmp_path_factory.mktemp("packed") / "shards"
    counts = pack(LibriSpeechFolder(SPEECH), output, utterances_per_shard=30)
    assert counts["train"] == len(EVERYTHING)
    return output


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset as the hub keeps them: parquet files, three for training, one for validation."""
    folder = tmp_path_factory.mktemp("hub")
    for split, pieces in (("train-clean-100", 3), ("dev-clean", 1)):
        files = files_of(SPEECH, split)
        audio = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
        dataset = datasets.Dataset.from_dict(
            {"id": [file.stem for file in files], "sound": audio}
        ).cast_column("sound", datasets.Audio(decode=False))
        name = "train" if pieces > 1 else "validation"
        for index in range(pieces):
            path = folder / "data" / f"{name}-{index:05d}-of-{pieces:05d}.parquet"
            path.parent.mkdir(exist_ok=True)
            dataset.shard(pieces, index).to_parquet(path)
    return folder
