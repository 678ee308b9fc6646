"""Which utterances make a batch: a duration budget, length buckets, equal shares for all ranks.

lhotse's `DynamicBucketingSampler` does this for corpora too large to hold in memory. Where lengths
are known beforehand, as for a folder, more can be promised, and training relies on it: the number
of batches is known and the same in every epoch (the schedule of growth and learning rate counts
on it), no utterance is lost or read twice however many ranks there are, and an epoch's batches
are a pure function of seed, epoch and ranks, so that resuming skips batches without replaying them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interstack.errors import DataError

_BATCHES_A_BUCKET = 4
"""Fewer would hardly mix the utterances of a small corpus; more only pads."""

_WIDEST_BUCKET = 1.25
"""Longest over shortest of a bucket: batches are sized for the longest, and so filled to 4/5."""


@dataclass(frozen=True)
class BatchPlan:
    """The fixed part of a corpus' batches: order by length, buckets and batch sizes.

    Utterances stand in order of length. Buckets are runs of that order with about equal durations,
    batches are runs too, and each epoch permutes the utterances within every bucket. Batches are
    sized as if each utterance were as long as the longest of its bucket, so whatever the
    permutation, the budget holds and the number of batches stays.

    Attributes:
        order: indices of the utterances, shortest first.
        bucket_starts: position in `order` where each bucket starts.
        batch_starts: position in `order` where each batch starts.
    """

    order: NDArray[np.int64]
    bucket_starts: NDArray[np.int64]
    batch_starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.batch_starts)

    def batches(self) -> list[NDArray[np.int64]]:
        """Returns the batches as planned, each the indices of its utterances."""
        return np.split(self.order, self.batch_starts[1:])

    def shuffled(self, key: Sequence[int], world_size: int = 1) -> list[list[NDArray[np.int64]]]:
        """Returns shuffled batches for every rank, [rank][step], as a pure function of `key`.

        The ranks' batches of one step are neighbours in length, so no rank waits long for another.
        """
        random = np.random.default_rng(key)
        order = self.order.copy()
        for bucket in np.split(order, self.bucket_starts[1:]):
            random.shuffle(bucket)  # a view: shuffles `order` itself
        batches = np.split(order, self.batch_starts[1:])
        shares: list[list[NDArray[np.int64]]] = [[] for _ in range(world_size)]
        for step in random.permutation(len(batches) // world_size):
            for rank, place in enumerate(random.permutation(world_size)):
                shares[rank].append(batches[step * world_size + place])
        return shares


def plan_batches(
    num_samples: Sequence[int],
    budget: int,
    num_buckets: int | None = None,
    *,
    world_size: int = 1,
    keep_order: bool = False,
) -> BatchPlan:
    """Plans batches whose padded size, utterances × longest, stays within a budget.

    Args:
        num_samples: length of every utterance, after cropping.
        budget: samples of one rank's batch, padding included; at least the longest utterance.
        num_buckets: buckets of equal duration, fewer for a small corpus; those that span more
            than a quarter in length are divided further. None: no buckets, nothing to permute.
        world_size: the number of batches is made a multiple of it by halving the batches with
            the most utterances.
        keep_order: leave the utterances as they stand; only without buckets.

    Raises:
        DataError: the utterances are too few for the ranks.
    """
    lengths = np.asarray(num_samples, dtype=np.int64)
    order = np.arange(len(lengths)) if keep_order else np.argsort(lengths, kind="stable")
    lengths = lengths[order]
    if num_buckets is None:
        bucket_starts, bounds = np.arange(len(lengths)), lengths
    else:
        bucket_starts = _bucket_starts(lengths, budget, num_buckets)
        bucket_ends = np.append(bucket_starts[1:], len(lengths))
        bounds = np.repeat(lengths[bucket_ends - 1], bucket_ends - bucket_starts)
    batch_starts = _halve_largest(_fill(bounds.tolist(), budget), len(lengths), world_size)
    return BatchPlan(order, bucket_starts, np.asarray(batch_starts, dtype=np.int64))


def _bucket_starts(lengths: NDArray[np.int64], budget: int, num_buckets: int) -> NDArray[np.int64]:
    """Divides sorted lengths into buckets of equal duration, none of them too wide."""
    ends = lengths.cumsum()
    total = int(ends[-1])
    num_buckets = max(1, min(num_buckets, total // (budget * _BATCHES_A_BUCKET)))
    equal = set(np.searchsorted(ends, total * np.arange(1, num_buckets) / num_buckets).tolist())
    starts, shortest = [0], int(lengths[0])
    for position, length in enumerate(lengths.tolist()):
        if position in equal or length > shortest * _WIDEST_BUCKET:
            starts.append(position)
            shortest = length
    return np.unique(starts)


def _fill(lengths: list[int], budget: int) -> list[int]:
    """Returns where each batch starts if every one takes what fits, in the order given."""
    starts, longest = [0], 0
    for position, length in enumerate(lengths):
        longest = max(longest, length)
        if (position - starts[-1] + 1) * longest > budget:
            starts.append(position)
            longest = length
    return starts


def _halve_largest(starts: list[int], end: int, world_size: int) -> list[int]:
    """Halves the batches with the most utterances until the ranks can share them evenly."""
    if end < -(-len(starts) // world_size) * world_size:
        raise DataError(
            f"{end} utterances in {len(starts)} batches can't be shared evenly by {world_size} "
            "ranks; raise data.batch_seconds, use fewer devices or more data."
        )
    starts = list(starts)
    while len(starts) % world_size:
        sizes = np.diff([*starts, end])
        largest = int(sizes.argmax())
        starts.insert(largest + 1, starts[largest] + int(sizes[largest]) // 2)
    return starts
