"""Speech that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from corpora import SPEECH


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A copy of the embedded validation split, as train-clean-100 and as dev-clean."""
    root = tmp_path / "corpus"
    for split in ("train-clean-100", "dev-clean"):
        shutil.copytree(SPEECH / "LibriSpeech" / "dev-clean", root / "LibriSpeech" / split)
    return root
