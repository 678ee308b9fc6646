"""A finished cache: which utterances it holds, and their targets as a batch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Self

from interstack.checkpointing.atomic import write_whole
from interstack.checkpointing.disk import unread
from interstack.errors import ConfigurationError, DataError
from interstack.target_cache.record import CacheRecord
from interstack.target_cache.shards import Entry, OpenShards
from interstack.target_cache.values import StoredTargets, StoredValues, collate_stored

INDEX_FILE: Final = "index.json"
"""Written last: a split without it is not finished."""


class SplitIndex:
    """Where each utterance of a split lies.

    Args:
        entries: For every utterance, its shard, its row there, and what it was computed from.
        left_out: Ids of utterances whose audio could not be read.
    """

    def __init__(
        self, entries: Iterable[tuple[str, int, Entry]], left_out: Sequence[str] = ()
    ) -> None:
        self.places = {entry.id: (shard, row, entry) for shard, row, entry in entries}
        self.left_out = frozenset(left_out)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read a finished split's index.

        Raises:
            ConfigurationError: If the split is not finished, or the index damaged.
        """
        path = directory / INDEX_FILE
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            rows = ((shard, row, Entry(*entry)) for shard, row, *entry in fields["utterances"])
            return cls(rows, fields["left_out"])
        except FileNotFoundError as error:
            raise ConfigurationError(
                f"the cache of targets has no finished split {directory.name} ({path} is missing): "
                f"run the cache command with {directory.name} among its --splits; it goes on where "
                "it stopped"
            ) from error
        except OSError as error:
            raise ConfigurationError(unread(path, error)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{path} is damaged ({error}): remove it and run the cache command again"
            ) from error

    def write(self, directory: Path) -> None:
        """Write the index, which declares the split finished.

        Raises:
            OSError: If that can't be done.
        """
        rows = [
            [shard, row, entry.id, entry.num_samples, entry.start, entry.length, entry.checksum]
            for shard, row, entry in self.places.values()
        ]
        content = json.dumps({"left_out": sorted(self.left_out), "utterances": rows})
        write_whole(directory / INDEX_FILE, content.encode())


class TargetCache:
    """A cache on the disk.

    Args:
        directory: What ``cache --output`` was given.

    Raises:
        ConfigurationError: If there is no cache.

    Attributes:
        record: Its facts.
        with_features: Whether batches carry the front end's features, so that nothing has to be
            decoded; set by whoever knows the student. Never true of a cache without them.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self.record = CacheRecord.read(self.directory)
        self.with_features = False
        self._splits: dict[str, SplitTargets] = {}

    def split(self, name: str) -> SplitTargets:
        """Open a split.

        Raises:
            ConfigurationError: If it is not finished.
        """
        if name not in self._splits:
            self._splits[name] = SplitTargets(self, name)
        return self._splits[name]

    def collate(self, split: str, ids: Sequence[str]) -> StoredTargets:
        """Read the targets of some utterances as a padded batch; see `SplitTargets.collate`."""
        return self.split(split).collate(ids)


class SplitTargets:
    """The targets of one split.

    Args:
        cache: What it belongs to.
        name: ``train``, ``validation`` or ``test``.

    Raises:
        ConfigurationError: If it is not finished.
    """

    def __init__(self, cache: TargetCache, name: str) -> None:
        self.cache = cache
        self.name = name
        directory = cache.directory / name
        self._index = SplitIndex.read(directory)
        self._shards = OpenShards(directory, with_levels=cache.record.dtype == "int8")

    def __len__(self) -> int:
        return len(self._index.places)

    @property
    def replaces_audio(self) -> bool:
        """Whether a batch needs no waveforms."""
        return self.cache.with_features and self.cache.record.num_features > 0

    def check(self, id_: str, num_samples: int, crop: tuple[int, int]) -> None:
        """Hold an utterance of a run to what the cache was computed from.

        Args:
            id_: Its id.
            num_samples: Its samples at 16 kHz.
            crop: First sample and number of samples of what the student hears.

        Raises:
            DataError: If the cache lacks it, since its audio could not be read.
            ConfigurationError: If the cache lacks it otherwise, or knows another one.
        """
        if id_ in self._index.left_out:
            raise DataError(f"the audio of {id_} could not be read when the cache was made.")
        place = self._index.places.get(id_)
        if place is None:
            raise ConfigurationError(
                f"the cache of targets in {self.cache.directory} lacks the utterance {id_} of "
                f"{self.name}: run the cache command with this run's data settings"
            )
        entry = place[2]
        if num_samples != entry.num_samples:
            raise ConfigurationError(
                f"{id_} has {num_samples} samples, but {entry.num_samples} when the cache of "
                f"targets in {self.cache.directory} was made: its audio has changed, make a new one"
            )
        if crop != (entry.start, entry.length):
            begin, length = crop
            raise ConfigurationError(
                f"the cache of targets in {self.cache.directory} was made with other crops: of "
                f"{id_} it knows {entry.length} samples from {entry.start}, the run wants {length} "
                f"from {begin}: give data.crop fixed and the data.max_seconds that it was made with"
            )

    def check_audio(self, id_: str, checksum: int) -> None:
        """Hold decoded audio to what the teacher heard.

        Raises:
            DataError: If it is other audio.
        """
        if self._index.places[id_][2].checksum != checksum:
            raise DataError(
                f"the audio of {id_} is not what the cache of targets in {self.cache.directory} "
                "was made from: make a new cache"
            )

    def collate(self, ids: Sequence[str]) -> StoredTargets:
        """Read the targets of some utterances as a padded batch.

        Args:
            ids: The utterances'.

        Returns:
            What is stored, (batch, frames, channels); without the features where these are not
            needed.

        Raises:
            DataError: If a shard is missing or damaged.
        """
        return collate_stored([self._read(id_) for id_ in ids])

    def _read(self, id_: str) -> StoredValues:
        shard, row, _ = self._index.places[id_]
        stored = self._shards.read(shard, row)
        if self.replaces_audio:
            return stored
        skipped = self.cache.record.num_features
        return StoredValues(
            stored.values[:, skipped:],
            None if stored.scale is None else stored.scale[skipped:],
            None if stored.offset is None else stored.offset[skipped:],
        )
