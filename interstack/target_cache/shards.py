"""A cache's files: many utterances a file, in safetensors, which is read by memory map."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from interstack.checkpointing.atomic import write_whole
from interstack.checkpointing.disk import disk_fault, unread
from interstack.errors import DataError
from interstack.target_cache.values import StoredValues

SUFFIX: Final = ".safetensors"
_UTTERANCES: Final = "utterances"


@dataclass(frozen=True)
class Entry:
    """What an utterance's targets were computed from.

    Attributes:
        id: The utterance's, unique within its split.
        num_samples: Samples of the whole utterance at 16 kHz.
        start: First sample of the crop that the teacher heard.
        length: Samples of the crop.
        checksum: CRC-32 of these samples as float32.
    """

    id: str
    num_samples: int
    start: int
    length: int
    checksum: int


def write_shard(path: Path, utterances: Sequence[tuple[Entry, StoredValues]]) -> int:
    """Write a shard whole, or not at all.

    Returns:
        Its bytes.

    Raises:
        OSError: If it can't be written.
    """
    tensors: dict[str, Tensor] = {}
    for row, (_, stored) in enumerate(utterances):
        for name, tensor in stored._asdict().items():
            if tensor is not None:
                tensors[f"{row}.{name}"] = tensor.contiguous()
    entries = json.dumps([asdict(entry) for entry, _ in utterances])
    content = save(tensors, {_UTTERANCES: entries})
    write_whole(path, content)
    return len(content)


def read_entries(path: Path) -> list[Entry]:
    """Read what a shard holds, from its header alone.

    Raises:
        DataError: If it is damaged.
    """
    with _explaining(path):
        metadata = _open(path).metadata()
        return [Entry(**fields) for fields in json.loads(metadata[_UTTERANCES])]


class OpenShards:
    """Shards that stay mapped once they have been read from; each process maps them itself.

    Args:
        directory: Where they lie.
        with_levels: Whether the number format needs scale and offset.
    """

    def __init__(self, directory: Path, *, with_levels: bool) -> None:
        self.directory = directory
        self._parts = StoredValues._fields if with_levels else StoredValues._fields[:1]
        self._open: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": {}}  # a map can't be sent to a spawned worker

    def read(self, shard: str, row: int) -> StoredValues:
        """Return one utterance's values, as they lie in the map.

        Raises:
            DataError: If the shard is missing or damaged.
        """
        path = self.directory / shard
        with _explaining(path):
            if shard not in self._open:
                self._open[shard] = _open(path)
            file = self._open[shard]
            return StoredValues(*(file.get_tensor(f"{row}.{part}") for part in self._parts))


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Turn the ways in which reading fails into one error that names the mend."""
    try:
        yield
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        fault = disk_fault(path)
        if fault is not None and not isinstance(fault, FileNotFoundError):
            raise DataError(unread(path, fault)) from error
        raise DataError(
            f"the cache's shard {path} is missing or damaged ({error}): remove it and the "
            "index.json beside it, and run the cache command again, which makes what is missing"
        ) from error


def _open(path: Path) -> Any:  # noqa: ANN401, safetensors has no type for it
    return safe_open(path, framework="pt")


def shards_of(directory: Path) -> Iterator[Path]:
    """Yield a split's shards in the order of their names."""
    yield from sorted(directory.glob(f"*{SUFFIX}"))
