"""A finished cache: which utterances it holds, and their targets as a batch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import HubertConfig

from interstack.data.batch import StoredTargets
from interstack.errors import ConfigurationError, DataError, TeacherError, first_line
from interstack.models.pretrained_front_end import PretrainedFrontEnd
from interstack.models.teacher import Teacher, TeacherOutput
from interstack.target_cache.format import (
    Entry,
    OpenShards,
    StoredValues,
    collate_stored,
    restore,
)
from interstack.target_cache.manifest import CacheRecord
from interstack.utils.atomic import write_whole
from interstack.utils.disk import disk_fault, unread

INDEX_FILE: Final = "index.json"
"""Written last: a split without it is not finished."""


class SplitIndex:
    """Where each utterance of a split lies.

    Args:
        entries: For every utterance, its shard, its row there, and what it was computed from.
        skipped: Ids of utterances whose audio could not be read.
    """

    def __init__(
        self, entries: Iterable[tuple[str, int, Entry]], skipped: Sequence[str] = ()
    ) -> None:
        self.places = {entry.id: (shard, row, entry) for shard, row, entry in entries}
        self.skipped = frozenset(skipped)

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
                f"run the cache command with {directory.name} among its --splits; it continues "
                "where it stopped"
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
        content = json.dumps({"left_out": sorted(self.skipped), "utterances": rows})
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
            decoded; set by the module that has the student.
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
        """Refuse an utterance other than the one that the cache was computed from.

        Args:
            id_: Its id.
            num_samples: Its samples at 16 kHz.
            crop: First sample and number of samples of the student's input.

        Raises:
            DataError: If the cache lacks it, since its audio could not be read.
            ConfigurationError: If the cache lacks it otherwise, or knows another one.
        """
        if id_ in self._index.skipped:
            raise DataError(f"the audio of {id_} could not be read when the cache was made")
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
        """Refuse decoded audio other than the teacher's input.

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


FRONT_END_FILE: Final = "front_end.safetensors"
SOURCE_FILE: Final = "front_end_source.safetensors"
"""The weights of the front end of ``model.student.front_end_source``."""


def write_front_end(
    teacher: Teacher, directory: Path, front_end: PretrainedFrontEnd | None = None
) -> None:
    """Write the front end's weights, from which a student's are copied or shared.

    A teacher that takes log-mel has none.

    Args:
        teacher: The teacher.
        directory: The cache's.
        front_end: That of ``model.student.front_end_source``, kept beside the teacher's.

    Raises:
        OSError: If they can't be written.
    """
    sources: dict[str, Teacher | PretrainedFrontEnd] = {}
    if teacher.takes_waveform:
        sources[FRONT_END_FILE] = teacher
    if front_end is not None:
        sources[SOURCE_FILE] = front_end
    for file, source in sources.items():
        state = {name: tensor.contiguous() for name, tensor in source.front_end_state().items()}
        write_whole(directory / file, save(state))


class CachedTeacher:
    """Gives a teacher's cached outputs; the model itself is never loaded.

    Its attributes are those of `Teacher`.

    Args:
        cache: A cache of its targets.
    """

    def __init__(self, cache: TargetCache) -> None:
        record = cache.record
        self.cache = cache
        self.config: Any = record.teacher_config
        self.source = record.source
        self.taps = record.taps
        self.width = record.width
        self.num_layers = record.num_layers
        self.normalises_waveform = record.normalises_waveform
        self.takes_waveform = record.takes_waveform
        self.max_samples = record.max_samples
        self.pad_to_30s = record.pad_to_30s
        self.first_frame_centre = record.first_frame_centre
        self.frame_hop = record.frame_hop
        self.has_final_norm = record.has_final_norm

    def to(self, device: torch.device) -> Self:
        """Return itself: its outputs are where the batch is."""
        del device
        return self

    def front_end_state(self) -> dict[str, Tensor]:
        """Return the convolutional front end's weights.

        Raises:
            TeacherError: If the teacher takes log-mel, or the cache's file is missing.
        """
        return _read_front_end(self.cache.directory / FRONT_END_FILE, self.source)

    @property
    def gives_features(self) -> bool:
        """Whether batches carry the features of a frozen front end."""
        return self.cache.with_features and self.cache.record.num_features > 0

    def unpack(self, stored: StoredTargets) -> TeacherOutput:
        """Return a batch's cached targets as a teacher's output, on their device.

        Args:
            stored: The batch's targets.

        Returns:
            What the teacher itself would give, up to the rounding of the cache's number format;
            features only where the batch has them.
        """
        values = restore(stored)
        features = None
        if values.shape[-1] > len(self.taps) * self.width:
            features = values[..., : -len(self.taps) * self.width].transpose(1, 2)
            values = values[..., -len(self.taps) * self.width :]
        return TeacherOutput(features, torch.split(values, self.width, dim=-1), stored.num_frames)


class CachedFrontEnd:
    """The front end of ``model.student.front_end_source``, as a cache has kept it.

    Its attributes are those of `PretrainedFrontEnd`.

    Args:
        cache: A cache that was made with such a front end.
    """

    def __init__(self, cache: TargetCache) -> None:
        record = cache.record
        assert record.front_end_config is not None
        self.cache = cache
        self.config: Any = HubertConfig(**record.front_end_config)
        self.normalises_waveform = record.front_end_normalises_waveform

    def front_end_state(self) -> dict[str, Tensor]:
        """Return the convolutional front end's weights.

        Raises:
            TeacherError: If the cache's file is missing or damaged.
        """
        source = str(self.cache.record.front_end_source)
        return _read_front_end(self.cache.directory / SOURCE_FILE, source)


def _read_front_end(path: Path, source: str) -> dict[str, Tensor]:
    """Read the weights of a front end.

    Args:
        path: The cache's file.
        source: The front end's model, for messages.

    Raises:
        TeacherError: If the file is missing or damaged.
    """
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        fault = disk_fault(path)
        if fault is None:
            raise TeacherError(
                f"{path} can't be read ({first_line(error)}): make the cache again in "
                "another directory"
            ) from error
        if not isinstance(fault, FileNotFoundError):
            raise TeacherError(unread(path, fault)) from error
        raise TeacherError(
            f"the cache in {path.parent} holds no front end of {source} to share or copy: give "
            "model.student.front_end own, or model.student.front_end_source a model that has one"
        ) from error
    return weights
