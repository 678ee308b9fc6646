"""Fetching LibriSpeech splits through torchaudio, whole or not at all."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Final

from interstack.errors import DataError

_log = logging.getLogger(__name__)

LIBRISPEECH_SPLITS: Final = (
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
)


def download_split(name: str, folder: Path) -> None:
    """Downloads one LibriSpeech split and checks it, then moves it to `folder/name`.

    torchaudio takes a half unpacked split for a whole one, so unpacking happens in a folder of its
    own beside the target, and only a whole split is moved.

    Raises:
        DataError: the name is none of LibriSpeech's, or the download, its checksum or unpacking
            failed.
    """
    if name not in LIBRISPEECH_SPLITS:
        raise DataError(
            f"{name!r} can't be downloaded; LibriSpeech has {', '.join(LIBRISPEECH_SPLITS)}."
        )
    from torchaudio.datasets import LIBRISPEECH

    workshop = folder / f".download-{name}"
    unpacked = workshop / "LibriSpeech"
    _log.info("downloading LibriSpeech %s to %s", name, folder)
    try:
        workshop.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unpacked, ignore_errors=True)
        LIBRISPEECH(workshop, url=name, download=True)
        (unpacked / name).rename(folder / name)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"LibriSpeech {name} could not be downloaded ({error}); try again, or unpack "
            f"{name}.tar.gz from openslr.org/12 so that {folder / name} exists."
        ) from error
    shutil.rmtree(workshop)
