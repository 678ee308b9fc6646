"""Clips of speech and their phones, by forced alignment.

`CORPUS/alignments/en.tsv` has a line for each phone: id, start_s, end_s, phone. The phones are
forced alignments by pocketsphinx, not human labels; SIL stands for silence and noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from interstack.constants import SAMPLE_RATE
from interstack.data.audio import Decoder
from interstack.data.base import Split
from interstack.data.folder import LibriSpeechFolder
from interstack.errors import DataError
from interstack.evaluation.clip_reader import ClipReader

SILENCE: Final = "SIL"
"""The label of silence and noise."""
UNLABELLED: Final = -1
"""The class of a frame that lies outside of all phones."""
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
_HEADER: Final = "id\tstart_s\tend_s\tphone"


class Phone(NamedTuple):
    """A phone and its time in a clip, in seconds."""

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class AlignedClip:
    """A clip whose phones are known."""

    id: str
    waveform: Tensor
    """(num_samples,) float32 at 16 kHz."""
    phones: Sequence[Phone]
    """In order, without overlap."""


def read_alignments(table: Path) -> dict[str, list[Phone]]:
    """Read a table of phones: clip id -> its phones in order.

    Raises:
        DataError: If the table is missing, empty or malformed, or phones of a clip overlap.
    """
    if not table.is_file():
        raise DataError(
            f"there are no forced alignments in {table}: build the corpus with its option --phones"
        )
    header, *lines = table.read_text(encoding="utf-8").splitlines() or [""]
    if header != _HEADER or not lines:
        raise DataError(
            f"{table} is no table of phones: give one with the columns {_HEADER.split()}"
        )
    clips: dict[str, list[Phone]] = {}
    for number, line in enumerate(lines, start=2):
        try:
            clip, start, end, label = line.split("\t")
            clips.setdefault(clip, []).append(Phone(float(start), float(end), label))
        except ValueError as error:
            raise DataError(
                f"line {number} of {table} is {line!r}: give an id, two times and a phone"
            ) from error
    for clip, phones in clips.items():
        times = [time for phone in phones for time in phone[:2]]
        if any(later < earlier for earlier, later in pairwise(times)):
            raise DataError(
                f"{table}: the phones of {clip} overlap or are out of order: fix its lines"
            )
    return clips


def frame_labels(phones: Sequence[Phone], centres: Tensor, classes: Mapping[str, int]) -> Tensor:
    """Return the class of the phone at each frame's centre.

    Args:
        phones: A clip's phones, in order.
        centres: (frames,) seconds.
        classes: Class of each label.

    Returns:
        (frames,) int64 classes; `UNLABELLED` where the centre is in no phone.
    """
    starts = torch.tensor([phone.start for phone in phones], dtype=centres.dtype)
    ends = torch.tensor([phone.end for phone in phones], dtype=centres.dtype)
    labels = torch.tensor([classes[phone.label] for phone in phones])
    index = torch.searchsorted(starts, centres, right=True) - 1
    held = (index >= 0) & (centres < ends[index.clamp(min=0)])
    return torch.where(held, labels[index.clamp(min=0)], UNLABELLED)


def read_aligned_clips(
    corpus: Path,
    table: Path | None = None,
    max_seconds: float = 30.0,
    reader: ClipReader | None = None,
) -> dict[Split, list[AlignedClip]]:
    """Return the clips that have phones, by split, each split sorted by path.

    Args:
        corpus: Folder with `LibriSpeech/{train-clean-100,dev-clean,test-clean}`.
        table: The alignments; `corpus/alignments/en.tsv` if None.
        max_seconds: Longer clips are cropped, to what every upstream has positions for.
        reader: Reader of the clips; None: one that raises at the first that can't be used.

    Raises:
        DataError: If the table can't be used, names clips that the corpus lacks, or leaves a split
            without clips; a clip is in two splits; or a split or a clip can't be read.
    """
    table = table or corpus / "alignments" / "en.tsv"
    alignments = read_alignments(table)
    folder = LibriSpeechFolder(corpus)
    decode = Decoder(max_samples=round(max_seconds * SAMPLE_RATE))
    clips: dict[Split, list[AlignedClip]] = {}
    reader = reader or ClipReader()
    splits: dict[str, Split] = {}
    for split in SPLITS:
        found, corrupt = reader.list(folder, split)
        aligned = [utterance for utterance in found if utterance.id in alignments]
        for utterance in aligned:
            other = splits.setdefault(utterance.id, split)
            if other != split:
                raise DataError(
                    f"{utterance.name} has the id of a clip of {other}: a probe needs splits that "
                    "share no clip; rename or remove one of them"
                )
        splits.update(dict.fromkeys(corrupt, split))
        clips[split] = [
            AlignedClip(utterance.id, waveform, alignments[utterance.id])
            for utterance, waveform in reader.decode(aligned, decode, split)
        ]
        if not clips[split]:
            raise DataError(
                f"{table} has phones for no clip of {folder.splits[split][0]}: add some"
            )
    unknown = [id_ for id_ in alignments if id_ not in splits]
    if unknown:
        first = ", ".join(unknown[:3])
        raise DataError(
            f"{table} has phones for {len(unknown)} clips that {corpus} lacks ({first}, …); "
            "give the alignments that were made with this corpus"
        )
    return clips
