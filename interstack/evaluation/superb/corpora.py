"""The corpora of s3prl's ctc recipe, which its wheel lacks: phones of LibriSpeech, SNIPS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch.utils.data import Dataset

from interstack.data.audio_files import supported_audio
from interstack.errors import DataError

Example = tuple[str, list[int]]
"""An audio file and its tokens."""


class TextEncoder(Protocol):
    """s3prl's tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return a transcript's tokens."""


class BucketedTranscripts(Dataset[Example | list[Example]]):
    """Transcribed files, those with the most tokens first, one by one or as buckets of neighbours.

    As in s3prl a bucket starts at the file of its index, and the last ones start early enough to be
    full.

    Args:
        examples: Files and their tokens.
        bucket_size: Files of a bucket; 1: no buckets.
    """

    def __init__(self, examples: Sequence[Example], bucket_size: int) -> None:
        self.bucket_size = bucket_size
        self.examples = sorted(examples, key=lambda example: len(example[1]), reverse=True)

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.examples)

    def __getitem__(self, index: int) -> Example | list[Example]:
        """Return a file, or the bucket that starts with it."""
        if self.bucket_size <= 1:
            return self.examples[index]
        start = max(0, min(len(self.examples) - self.bucket_size, index))
        return self.examples[start : start + self.bucket_size]


class LibriPhoneDataset(BucketedTranscripts):
    """LibriSpeech with phones, by the first pronunciation that the lexicons give a word.

    Args:
        split: Names of LibriSpeech's parts.
        tokenizer: Tokenizer of phones.
        bucket_size: See `BucketedTranscripts`.
        path: Directory ``LibriSpeech`` of the parts.
        lexicon: Files of a word and its phones a line.
        **_: Settings of other corpora.

    Raises:
        DataError: If a part has no audio, a transcript is missing, or a word has no phones.
    """

    def __init__(
        self,
        split: Sequence[str],
        tokenizer: TextEncoder,
        bucket_size: int,
        *,
        path: str,
        lexicon: Sequence[str],
        **_: object,
    ) -> None:
        phones = read_lexicons([Path(file) for file in lexicon])
        examples = []
        for part in split:
            files = [Path(file) for file in supported_audio(Path(path) / part)]
            if not files:
                raise DataError(f"{Path(path) / part} has no audio: fix --data-root")
            texts = _librispeech_transcripts(files)
            for file in files:
                if file.stem not in texts:
                    raise DataError(f"{file} has no transcript in a .trans.txt beside it: add it")
                words = texts[file.stem].split()
                spoken = [phone for word in words for phone in _phones_of(word, phones, file)]
                examples.append((str(file), tokenizer.encode(" ".join(spoken))))
        super().__init__(examples, bucket_size)


class SnipsDataset(BucketedTranscripts):
    """Audio SNIPS: transcripts with slots, for the speakers of a split.

    Args:
        split: Names of the splits' folders.
        tokenizer: Tokenizer of characters and slots.
        bucket_size: See `BucketedTranscripts`.
        path: Directory ``SNIPS`` of the splits.
        **settings: ``train_speakers``, ``valid_speakers`` and ``test_speakers``: prefixes of file
            names.

    Raises:
        DataError: If a split has no audio of its speakers with a transcript.
    """

    def __init__(
        self,
        split: Sequence[str],
        tokenizer: TextEncoder,
        bucket_size: int,
        *,
        path: str,
        **settings: object,
    ) -> None:
        speakers = settings[f"{split[0]}_speakers"]
        assert isinstance(speakers, Sequence)
        table = Path(path) / "all.iob.snips.txt"
        lines = table.read_text(encoding="utf-8").splitlines()
        texts = dict(line.split(" ", 1) for line in lines if " " in line)
        files = [Path(file) for part in split for file in supported_audio(Path(path) / part)]
        examples = [
            (str(file), tokenizer.encode(texts[file.stem]))
            for file in files
            if file.stem in texts and file.name.startswith(tuple(speakers))
        ]
        if not examples:
            raise DataError(
                f"{path} has no audio for {', '.join(split)}: of {len(files)} audio files none is "
                f"of the speakers {', '.join(speakers)} and in {table.name}"
            )
        super().__init__(examples, bucket_size)


def read_lexicons(files: Sequence[Path]) -> dict[str, list[str]]:
    """Return the phones of each word; the first of several pronunciations is taken."""
    phones: dict[str, list[str]] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            word, *spoken = line.split() or [""]
            if spoken:
                phones.setdefault(word, spoken)
    return phones


def _phones_of(word: str, phones: Mapping[str, list[str]], file: Path) -> list[str]:
    if word not in phones:
        raise DataError(
            f"the lexicons have no phones for {word!r} of {file.name}: add a line for it"
        )
    return phones[word]


def _librispeech_transcripts(files: Sequence[Path]) -> dict[str, str]:
    """Return the transcripts beside some of LibriSpeech's files, by utterance."""
    texts: dict[str, str] = {}
    for chapter in sorted({file.parent for file in files}):
        for table in chapter.glob("*.trans.txt"):
            lines = table.read_text(encoding="utf-8").splitlines()
            for line in lines:
                utterance, _, text = line.partition(" ")
                texts[utterance] = text
    return texts
