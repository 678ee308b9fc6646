"""How targets are stored: number formats, and shards of many utterances."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from interstack.data.batch import StoredTargets
from interstack.errors import DataError
from interstack.utils.atomic import write_whole
from interstack.utils.disk import disk_fault, unread

CacheDtype = Literal["float32", "bfloat16", "float16", "int8"]
"""``float32`` is exact; the 16-bit formats round each value, relatively by at most 2⁻⁹ (bfloat16)
or 2⁻¹² (float16); ``int8`` rounds it to one of 256 levels between the least and the greatest value
that its channel takes in the utterance, so by at most 1/510 of that range."""

TORCH_DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.uint8,
}
_LEVELS: Final = 255

SUFFIX: Final = ".safetensors"
_UTTERANCES: Final = "utterances"


class StoredValues(NamedTuple):
    """What is stored of one utterance.

    Attributes:
        values: (frames, channels) in the cache's number format.
        scale: (channels,) float32, the step between two levels; None but for ``int8``.
        offset: (channels,) float32, the value of level 0; None but for ``int8``.
    """

    values: Tensor
    scale: Tensor | None = None
    offset: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes."""
        return sum(part.numel() * part.element_size() for part in self if part is not None)

    def cpu(self) -> Self:
        """Return the same on the CPU."""
        scale, offset = (part if part is None else part.cpu() for part in self[1:])
        return self._replace(values=self.values.cpu(), scale=scale, offset=offset)


def store(
    exact: Tensor, dtype: CacheDtype, name: str, fix: str = "leave the utterance out"
) -> StoredValues:
    """Convert an utterance's values to a number format.

    Args:
        exact: (frames, channels) float32.
        dtype: The format.
        name: The utterance, for the message.
        fix: What to do where a value is not finite, for the message.

    Raises:
        DataError: If a value is not finite, or too large for the format.
    """
    if not bool(torch.isfinite(exact).all()):
        raise DataError(f"the teacher's hidden states of {name} are not finite: {fix}")
    if dtype == "int8":
        offset, greatest = exact.amin(0), exact.amax(0)
        scale = (greatest - offset) / _LEVELS
        step = torch.where(scale > 0, scale, 1.0)  # a channel that never varies is level 0 alone
        levels = ((exact - offset) / step).round_().clamp_(0, _LEVELS)
        return StoredValues(levels.to(torch.uint8), scale, offset)
    values = exact.to(TORCH_DTYPES[dtype])
    if not bool(torch.isfinite(values).all()):
        raise DataError(
            f"the teacher's hidden states of {name} reach {float(exact.abs().max()):.3g}, too much "
            f"for {dtype}: give --dtype bfloat16, int8 or float32"
        )
    return StoredValues(values)


def collate_stored(utterances: Sequence[StoredValues]) -> StoredTargets:
    """Pad what is stored of several utterances into one batch; nothing is converted yet."""
    return StoredTargets(
        pad_sequence([each.values for each in utterances], batch_first=True),
        _stacked([each.scale for each in utterances]),
        _stacked([each.offset for each in utterances]),
        torch.tensor([len(each.values) for each in utterances]),
    )


def restore(stored: StoredTargets) -> Tensor:
    """Return the values as they were, up to rounding: (batch, frames, channels) float32."""
    values = stored.values.float()
    if stored.scale is None or stored.offset is None:
        return values
    return torch.addcmul(stored.offset[:, None], values, stored.scale[:, None])


def _stacked(rows: Sequence[Tensor | None]) -> Tensor | None:
    present = [row for row in rows if row is not None]
    return torch.stack(present) if present else None


@dataclass(frozen=True)
class Entry:
    """What an utterance's targets were computed from.

    Attributes:
        id: The utterance's, unique within its split.
        num_samples: Samples of the whole utterance at 16 kHz.
        start: First sample of the crop that the teacher read.
        length: Samples of the crop.
        checksum: CRC-32 of these samples as float32.
    """

    id: str
    num_samples: int
    start: int
    length: int
    checksum: int


def write_shard(path: Path, utterances: Sequence[tuple[Entry, StoredValues]]) -> None:
    """Write a shard atomically.

    Raises:
        OSError: If it can't be written.
    """
    tensors: dict[str, Tensor] = {}
    for row, (_, stored) in enumerate(utterances):
        for name, tensor in stored._asdict().items():
            if tensor is not None:
                tensors[f"{row}.{name}"] = tensor.contiguous()
    entries = json.dumps([asdict(entry) for entry, _ in utterances])
    write_whole(path, save(tensors, {_UTTERANCES: entries}))


def read_entries(path: Path) -> list[Entry]:
    """Read what a shard holds, from its header alone.

    Raises:
        DataError: If it is damaged.
    """
    with _read_errors(path):
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
        with _read_errors(path):
            if shard not in self._open:
                self._open[shard] = _open(path)
            file = self._open[shard]
            return StoredValues(*(file.get_tensor(f"{row}.{part}") for part in self._parts))


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Turn the ways in which reading fails into one error that names the fix."""
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
