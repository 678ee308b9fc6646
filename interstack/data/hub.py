"""Speech streamed from a Hugging Face dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import fsspec

from interstack.data.base import Split
from interstack.data.streaming import Shard, StreamSource
from interstack.errors import DataError
from interstack.settings import check_effect

if TYPE_CHECKING:
    from datasets import IterableDataset


_ID_COLUMN: Final = "id"


class HubDataset(StreamSource):
    """A dataset from the Hugging Face hub, or in a local folder, streamed without downloading.

    LibriSpeech itself is `openslr/librispeech_asr`. The rows must hold the audio or name its
    files, as the hub's parquet files do; a mere folder of audio is for `LibriSpeechFolder`.
    lhotse can read these datasets too, but names utterances by a hash of their audio.

    Args:
        path: The hub's id of the dataset, or a local folder.
        name: Its configuration, where it has several ("all", "clean", …).
        train: Splits to train on.
        validation: Splits to validate on.
        test: Splits to test and predict on.
        audio_column: Column that holds the audio.
        id_column: Column that names the utterance; where there is no column "id", the audio's file
            name or else its position does.
        revision: Branch, tag or commit of the dataset; refused for a local folder.

    Raises:
        ConfigurationError: If a revision of a local folder is given.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        train: Sequence[str] = ("train.clean.100",),
        validation: Sequence[str] = ("validation.clean",),
        test: Sequence[str] = ("test.clean",),
        audio_column: str = "audio",
        id_column: str = _ID_COLUMN,
        revision: str | None = None,
    ) -> None:
        self.path = path
        self.name = name
        self.splits: dict[Split, tuple[str, ...]] = {
            "train": tuple(train),
            "validation": tuple(validation),
            "test": tuple(test),
        }
        self.audio_column = audio_column
        self.id_column = id_column
        self.revision = revision
        if Path(path).is_dir():
            where = f"with {self.section}.path {path}, a local folder"
            check_effect(f"{self.section}.revision", revision, None, where)

    def shards(self, split: Split) -> Sequence[Shard]:
        """List the files of a split's dataset; see `StreamSource.shards`."""
        shards = [shard for name in self.splits[split] for shard in self._shards_of(name)]
        if not shards:
            raise DataError(f"no split is named for {split}: set {self.section}.{split}")
        return shards

    def _shards_of(self, split: str) -> list[Shard]:
        from datasets import Audio

        dataset = self._load(split)
        for option, column in self._columns_needed().items():
            if dataset.column_names is not None and column not in dataset.column_names:
                raise DataError(
                    f"{self.section}.{option} is {column!r}, but {self.path} has the columns "
                    f"{', '.join(dataset.column_names)}: name one of these"
                )
        dataset = dataset.cast_column(self.audio_column, Audio(decode=False))
        number = dataset.num_shards
        return [
            Shard(
                f"part {part} of the dataset {self.path!r}",
                partial(_read, dataset.shard(number, index), self, part),
                "set data.source.id_column to a column that tells them apart",
            )
            for index in range(number)
            for part in [f"{split}-{index}"]
        ]

    def _columns_needed(self) -> dict[str, str]:
        """Return the options that name a required column, and the columns."""
        needed = {"audio_column": self.audio_column}
        return needed | ({} if self.id_column == _ID_COLUMN else {"id_column": self.id_column})

    def _load(self, split: str) -> IterableDataset:
        """Open a split without reading it."""
        from datasets import load_dataset

        try:
            return load_dataset(
                self.path, self.name, split=split, streaming=True, revision=self.revision
            )
        except Exception as error:  # datasets, huggingface_hub and httpx each raise their own
            raise DataError(
                f"the split {split!r} of the dataset {self.path!r} can't be opened ({error}): "
                f"without a connection to the hub, set {self.section}.path to a local copy, or use "
                "LibriSpeechFolder or Shards"
            ) from error


def _read(dataset: IterableDataset, source: HubDataset, part: str) -> Iterator[tuple[str, bytes]]:
    """Yield ids and encoded audio of one of a dataset's files.

    Raises:
        DataError: If the file can't be reached or read.
    """
    try:
        # Not iter(dataset): inside a loader worker that divides the shards among the workers,
        # which is already done.
        for index, rows in enumerate(dataset.iter(batch_size=1)):
            row = {column: values[0] for column, values in rows.items()}
            audio = row[source.audio_column]
            yield _name(row, source.id_column, audio, f"{part}-{index}"), _bytes(audio)
    except Exception as error:
        raise DataError(
            f"part {part} of the dataset {source.path!r} can't be read ({error}): see that it is "
            "there, readable and complete"
        ) from error


def _name(row: dict[str, Any], id_column: str, audio: dict[str, Any], position: str) -> str:
    if row.get(id_column) is not None:
        return str(row[id_column])
    return PurePosixPath(audio["path"]).stem if audio.get("path") else position


def _bytes(audio: dict[str, Any]) -> bytes:
    """Return a row's encoded audio, which is in the row itself or in a file it names."""
    if audio["bytes"] is not None:
        return bytes(audio["bytes"])
    with fsspec.open(audio["path"], "rb") as file:
        data: bytes = file.read()
    return data
