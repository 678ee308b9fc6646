"""Utterances from shards: once through, or endlessly, each reader its own share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from interstack.data.feed import FeedSettings, check_rate
from interstack.data.tolerance import Tolerance
from interstack.data.utterance import Utterance, read_header
from interstack.errors import DataError


@dataclass(frozen=True)
class Shard:
    """A part of a stream that is read front to back. Picklable, for spawned workers.

    Attributes:
        name: What to call it in a message.
        read: Opens it: yields utterance ids and encoded audio.
        unique_ids: How to give its utterances ids that are unique.
    """

    name: str
    read: Callable[[], Iterator[tuple[str, bytes]]]
    unique_ids: str


def read_once(shards: Sequence[Shard], settings: FeedSettings) -> Iterator[Utterance]:
    """Yields the usable utterances of all shards, in order.

    Raises:
        DataError: a shard can't be read, two utterances have the same id, or audio is corrupt
            (unless that is to be skipped) or not at 16 kHz.
    """
    tolerance = settings.tolerance()
    places: dict[str, str] = {}
    for shard in shards:
        for id_, audio in shard.read():
            if id_ in places:  # outputs and targets are kept by ids: one would replace the other
                both = (
                    f"{shard.name} holds the utterance {id_} twice"
                    if places[id_] == shard.name
                    else f"{places[id_]} and {shard.name} both hold an utterance {id_}"
                )
                raise DataError(f"{both}: {shard.unique_ids}")
            places[id_] = shard.name
            utterance = _admit(id_, audio, settings, tolerance)
            if utterance is not None:
                yield utterance


def read_share(
    shards: Sequence[Shard],
    settings: FeedSettings,
    epoch: int,
    reader: int,
    num_readers: int,
) -> Iterator[Utterance | None]:
    """Yields one reader's utterances without end, in an order that seed and epoch decide.

    All readers shuffle the shards alike and take turns in choosing. Where there are more readers
    than shards, those of one shard take turns with its utterances. After all of its share, and a
    None to mark that, a reader goes on with its share of another shuffle.

    Raises:
        DataError: see `read_once`; or nothing in the share is usable.
    """
    tolerance = settings.tolerance()
    for pass_ in count():
        random = np.random.default_rng((settings.seed, epoch, pass_))
        found = False
        for shard, part, parts in _share(random.permutation(len(shards)), reader, num_readers):
            for index, (id_, audio) in enumerate(shards[shard].read()):
                if index % parts != part:
                    continue
                utterance = _admit(id_, audio, settings, tolerance)
                if utterance is not None:
                    found = True
                    yield utterance
        if not found:
            raise DataError(
                f"Reader {reader} of {num_readers} finds no usable utterance in its share of "
                f"{len(shards)} shards: lower data.num_workers or trainer.devices, or pack more "
                "shards"
            )
        yield None


def _share(
    order: np.ndarray[tuple[int], np.dtype[np.int64]], reader: int, num_readers: int
) -> list[tuple[int, int, int]]:
    """Returns a reader's shards, each as shard, which part of it, of how many parts."""
    if len(order) >= num_readers:
        return [(int(shard), 0, 1) for shard in order[reader::num_readers]]
    place = reader % len(order)
    parts = len(range(place, num_readers, len(order)))
    return [(int(order[place]), reader // len(order), parts)]


def _admit(
    id_: str, audio: bytes, settings: FeedSettings, tolerance: Tolerance
) -> Utterance | None:
    """Describes an utterance, or returns None if it is too short or corrupt and to be skipped."""
    try:
        utterance = read_header(id_, audio, id_)
    except DataError as error:
        tolerance.failed(error)
        return None
    tolerance.passed()
    check_rate(utterance, settings.resample)
    if utterance.num_samples < settings.min_samples:
        settings.left_out.count_too_short()
        return None
    return utterance
