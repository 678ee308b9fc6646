"""What a whole clip is labelled with: the domain of a prompt, or the character that speaks.

The labels are those of the corpus that this project is measured on, in LibriSpeech's layout: a
speaker is a voice of Asterisk's prompts, or a character of the game Fish Fillets (by
`SPEAKERS.TXT`); a chapter is a folder of prompts, whose number modulo 1000 is the same in all
languages. Its splits share their speakers.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from torch import Tensor

from interstack.constants import SAMPLE_RATE
from interstack.data.decoding import Decoder
from interstack.data.folder import LibriSpeechFolder
from interstack.data.source import Split
from interstack.data.utterance import Utterance
from interstack.errors import DataError
from interstack.evaluation.clip_reader import ClipReader

ClipTask = Literal["domain", "speaker"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
FEWEST_TRAIN_CLIPS: Final = 5
"""A label with fewer clips to train on, or none to test on, is left out."""
MOST_CLIPS: Final[dict[Split, int]] = {"train": 60, "validation": 30, "test": 50}
"""Clips of a label in a split at most, drawn by their ids: minutes of listening, and two voices
that say most of the corpus don't decide the score."""
_CHARACTERS: Final = "Fish Fillets "
_MAX_SECONDS: Final = 30.0


@dataclass(frozen=True)
class LabelledClip:
    """A clip and its label.

    Attributes:
        id: Its name.
        waveform: (num_samples,) float32 at 16 kHz.
        label: What it is.
    """

    id: str
    waveform: Tensor
    label: str


def read_labelled_clips(
    corpus: Path, task: ClipTask, reader: ClipReader | None = None
) -> dict[Split, list[LabelledClip]]:
    """Read the clips that a probe of whole clips is about, split as the corpus splits them.

    Args:
        corpus: Folder with `LibriSpeech/{train-clean-100,dev-clean,test-clean}`.
        task: What the clips are labelled with.
        reader: Which clips can be used; None: all, and the first that can't be ends it.

    Raises:
        DataError: If the corpus has fewer than two such labels, or a clip can't be read.
    """
    label_of = _LABELLERS[task](corpus)
    folder = LibriSpeechFolder(corpus)
    found: dict[Split, list[tuple[Utterance, str]]] = {}
    reader = reader or ClipReader()
    for split in SPLITS:
        utterances, _ = reader.list(folder, split)
        # by its file name, which an id is not where names recur
        labelled = ((each, label_of(Path(each.name).stem)) for each in utterances)
        found[split] = [(utterance, label) for utterance, label in labelled if label is not None]
    labels = _usable_labels({split: [label for _, label in found[split]] for split in SPLITS})
    _check_labels(labels, [label for _, label in found["validation"]], corpus, task)
    decode = Decoder(max_samples=round(_MAX_SECONDS * SAMPLE_RATE))
    clips = {}
    for split in SPLITS:
        drawn = {
            utterance: label
            for utterance, label in _drawn(found[split], MOST_CLIPS[split])
            if label in labels
        }
        clips[split] = [
            LabelledClip(utterance.id, waveform, drawn[utterance])
            for utterance, waveform in reader.decode(drawn, decode, split)
        ]
    if not reader.skipped.total():
        return clips
    labels = _usable_labels({split: [clip.label for clip in clips[split]] for split in SPLITS})
    _check_labels(labels, [clip.label for clip in clips["validation"]], corpus, task)
    return {split: [clip for clip in clips[split] if clip.label in labels] for split in SPLITS}


def _usable_labels(found: Mapping[Split, Sequence[str]]) -> set[str]:
    """Return the labels that have clips enough to train on, and some to test on."""
    counts = Counter(found["train"])
    test = set(found["test"])
    return {label for label in counts if counts[label] >= FEWEST_TRAIN_CLIPS and label in test}


def _check_labels(
    labels: set[str], validation: Sequence[str], corpus: Path, task: ClipTask
) -> None:
    if len(labels) < 2 or labels.isdisjoint(validation):
        raise DataError(
            f"{corpus} has no two labels of {task} with {FEWEST_TRAIN_CLIPS} clips to train on and "
            "some to test on: take the corpus that the README names, with all its sources"
        )


def _drawn(clips: list[tuple[Utterance, str]], most: int) -> Iterator[tuple[Utterance, str]]:
    """Draw so many clips of each label, whatever else is in the corpus; in their order."""
    by_hash = sorted(clips, key=lambda clip: hashlib.sha256(clip[0].id.encode()).digest())
    taken: Counter[str] = Counter()
    drawn = set()
    for utterance, label in by_hash:
        if taken[label] < most:
            taken[label] += 1
            drawn.add(utterance.id)
    return (clip for clip in clips if clip[0].id in drawn)


def _domains(corpus: Path) -> Callable[[str], str | None]:
    """Label a prompt with its folder: by name where the corpus has its manifest."""
    characters = _characters(corpus)
    names = _folder_names(corpus / "manifest.tsv")

    def label(id_: str) -> str | None:
        speaker, _, rest = id_.partition("-")
        chapter = rest.partition("-")[0]
        if speaker in characters or not chapter.isdecimal():
            return None
        place = int(chapter) % 1000
        return names.get(place, f"folder {place}")

    return label


def _speakers(corpus: Path) -> Callable[[str], str | None]:
    """Label a line of dialogue with the character that says it."""
    characters = _characters(corpus)
    return lambda id_: characters.get(id_.split("-")[0])


def _characters(corpus: Path) -> dict[str, str]:
    """Read the game's characters: speaker -> language and colour of the subtitle."""
    table = corpus / "LibriSpeech" / "SPEAKERS.TXT"
    if not table.is_file():
        raise DataError(f"{table} is missing: it tells prompts from dialogue")
    rows = [line.split("|") for line in table.read_text(encoding="utf-8").splitlines()]
    names = {row[0].strip(): row[-1].strip() for row in rows if not row[0].startswith(";")}
    return {
        speaker: name.removeprefix(_CHARACTERS)
        for speaker, name in names.items()
        if name.startswith(_CHARACTERS)
    }


def _folder_names(manifest: Path) -> dict[int, str]:
    """Read what the folders of prompts are called; nothing without the manifest."""
    if not manifest.is_file():
        return {}
    names = {}
    with manifest.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["source_package"].startswith("asterisk"):
                place = int(row["id"].split("-")[1]) % 1000
                names[place] = "/".join(row["source_file"].split("/")[1:-1]) or "main"
    return names


_LABELLERS: Final[Mapping[ClipTask, Callable[[Path], Callable[[str], str | None]]]] = {
    "domain": _domains,
    "speaker": _speakers,
}
