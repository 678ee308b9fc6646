"""Which utterances make a batch: a duration budget, length buckets, as many for every rank.

lhotse's `DynamicBucketingSampler` does this for corpora too large to hold in memory. Where lengths
are known beforehand, as for a folder, more can be promised, and training relies on it: the number
of batches is known and the same in every epoch (the schedule of growth and learning rate counts
on it), no utterance is lost or read twice for any number of ranks, and an epoch's batches
are a pure function of seed, epoch and ranks, so that resuming skips batches without replaying them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from interstack.errors import DataError

_BATCHES_A_BUCKET: Final = 4
"""Fewer would hardly mix the utterances of a small corpus; more only pads."""

_WIDEST_BUCKET: Final = 1.25
"""Longest over shortest of a bucket."""

_LEAST_FULL: Final = 0.4
"""Fraction of the budget that a batch takes before it may end early, to avoid padding."""

_MOST_PADDING: Final = 0.047
"""Fraction of padding that is accepted."""

_TRADES: Final = ((0.3, 1.1), (0.2, 1.1), (0.15, 1.1), (0.1, 1.1), (0.1, 1.06), (0.1, 1.03))
"""What is tried to keep to that, in this order: by how much lengths are blurred for mixing, and
longest over shortest of a batch as planned, where it ends early. A large corpus has enough
utterances alike for full batches that are well mixed; a small one mixes less, and then has more
batches that are less full, but it always mixes some."""

_FALLBACK_TRADE: Final = (0.1, 1.1)
"""For a corpus so small that none of them is enough."""


@dataclass(frozen=True)
class BatchPlan:
    """The fixed part of a corpus' batches: order by length, buckets and batch sizes.

    Utterances are in order of length. Buckets are runs of that order with about equal durations,
    batches are runs too. Each epoch lengthens every utterance nominally by a random fraction of at
    most `spread` and sorts again within every bucket, so that an utterance meets random others of
    similar length. Batches are sized for the longest that can get there, so whatever the order,
    the budget holds and the number of batches stays.

    Attributes:
        order: Indices of the utterances, shortest first.
        lengths: Length of each, in that order.
        bucket_starts: Position in `order` where each bucket starts.
        batch_starts: Position in `order` where each batch starts.
        spread: The fraction by which lengths are blurred.
    """

    order: NDArray[np.int64]
    lengths: NDArray[np.int64]
    bucket_starts: NDArray[np.int64]
    batch_starts: NDArray[np.int64]
    spread: float = 0.0

    def __len__(self) -> int:
        return len(self.batch_starts)

    def batches(self) -> list[NDArray[np.int64]]:
        """Return the batches as planned, each the indices of its utterances."""
        return np.split(self.order, self.batch_starts[1:])

    def shuffled(self, key: Sequence[int], world_size: int = 1) -> list[list[NDArray[np.int64]]]:
        """Return shuffled batches for every rank, `[rank][step]`, as a pure function of `key`.

        The ranks' batches of one step are neighbours in length, so no rank waits long for another.
        Where ranks accumulate, `world_size` is ranks × micro-batches.
        """
        random = np.random.default_rng(key)
        batches = np.split(self.order[self._shuffle(random)], self.batch_starts[1:])
        ranks: list[list[NDArray[np.int64]]] = [[] for _ in range(world_size)]
        for step in random.permutation(len(batches) // world_size):
            for rank, index in enumerate(random.permutation(world_size)):
                ranks[rank].append(batches[step * world_size + index])
        return ranks

    def padding(self, key: Sequence[int]) -> float:
        """Return the fraction of padding in the shuffled batches of all ranks."""
        lengths = self.lengths[self._shuffle(np.random.default_rng(key))]
        sizes = np.diff([*self.batch_starts, len(lengths)])
        padded = np.maximum.reduceat(lengths, self.batch_starts) * sizes
        return 1 - float(lengths.sum() / padded.sum())

    def _shuffle(self, random: np.random.Generator) -> NDArray[np.int64]:
        """Return the new order, as positions in `order`."""
        blurred = self.lengths * (1 + self.spread * random.random(len(self.lengths)))
        buckets = np.zeros(len(self.lengths), dtype=np.int64)
        buckets[self.bucket_starts[1:]] = 1
        return np.lexsort((blurred, buckets.cumsum()))


def plan_batches(
    num_samples: Sequence[int],
    budget: int,
    num_buckets: int | None = None,
    *,
    world_size: int = 1,
    micro_batches: int = 1,
    keep_order: bool = False,
    budget_option: str = "data.batch_seconds",
) -> BatchPlan:
    """Plan batches whose padded size, utterances × longest, stays within a budget.

    Args:
        num_samples: Length of every utterance, after cropping.
        budget: Samples of one rank's batch, padding included; at least the longest utterance.
        num_buckets: Buckets of equal duration, fewer for a small corpus; those that span more
            than a quarter in length are divided further. None: no buckets, nothing to shuffle.
        world_size: Number of ranks.
        micro_batches: Batches of a rank that are drawn together. The number of all batches is made
            a multiple of ranks × micro-batches by halving the batches with the most utterances.
        keep_order: Leave the utterances as they stand; only without buckets.
        budget_option: Name of the option that the budget comes from, for the message.

    Raises:
        DataError: If the utterances are too few for the ranks.
    """
    lengths = np.asarray(num_samples, dtype=np.int64)
    order = np.arange(len(lengths)) if keep_order else np.argsort(lengths, kind="stable")
    lengths = lengths[order]
    if num_buckets is None:
        starts = _fill(lengths.tolist(), budget)
        starts = _halve_largest(starts, len(lengths), world_size, micro_batches, budget_option)
        return BatchPlan(order, lengths, np.arange(len(lengths)), np.asarray(starts))
    bucket_starts = _bucket_starts(lengths, budget, num_buckets)
    for spread, width in (*_TRADES, _FALLBACK_TRADE):
        longest = _longest(lengths, bucket_starts, spread)
        reached = np.searchsorted(lengths, lengths * width, side="right")
        filled = _fill(longest.tolist(), budget, reached.tolist())
        starts = _halve_largest(filled, len(lengths), world_size, micro_batches, budget_option)
        plan = BatchPlan(order, lengths, bucket_starts, np.asarray(starts), spread)
        if plan.padding((0,)) + plan.padding((1,)) <= 2 * _MOST_PADDING:
            break
    return plan


def _bucket_starts(lengths: NDArray[np.int64], budget: int, num_buckets: int) -> NDArray[np.int64]:
    """Divide sorted lengths into buckets of equal duration, none of them too wide."""
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


def _longest(
    lengths: NDArray[np.int64], bucket_starts: NDArray[np.int64], spread: float
) -> NDArray[np.int64]:
    """Return the longest that each position can hold after a shuffle.

    The first n utterances count as at most their longest times 1 + `spread`, hence so do the first
    n after the shuffle, and none of them is longer than it counts.
    """
    reach = np.searchsorted(lengths, lengths * (1 + spread), side="right") - 1
    bucket_ends = np.append(bucket_starts[1:], len(lengths))
    last = np.repeat(bucket_ends - 1, bucket_ends - bucket_starts)
    longest: NDArray[np.int64] = lengths[np.minimum(reach, last)]
    return longest


def _fill(longest: list[int], budget: int, ends: list[int] | None = None) -> list[int]:
    """Return where each batch starts if every one takes what fits, in the order given.

    Args:
        longest: The longest that each position can hold.
        budget: A batch's.
        ends: Where a batch that begins at a position ends if it is full enough by then.
    """
    starts, most = [0], 0
    for position, length in enumerate(longest):
        size = (position - starts[-1]) * most
        most = max(most, length)
        full = (position - starts[-1] + 1) * most > budget
        wide = ends is not None and position >= ends[starts[-1]] and size > _LEAST_FULL * budget
        if (full or wide) and position > starts[-1]:  # what exceeds the budget alone is a batch
            starts.append(position)
            most = length
    return starts


def _halve_largest(
    starts: list[int], end: int, world_size: int, micro_batches: int, budget_option: str
) -> list[int]:
    """Halve the batches with the most utterances until every rank has as many."""
    slots = world_size * micro_batches
    if end < -(-len(starts) // slots) * slots:
        ranks = f"{world_size} ranks"
        fix = f"raise {budget_option}, lower trainer.devices, or give more data"
        if micro_batches > 1:
            ranks += f" with {micro_batches} micro-batches each"
            fix = f"lower data.global_batch_seconds, {fix}"
        raise DataError(
            f"{end} utterances in {len(starts)} batches can't be shared evenly by {ranks}: {fix}"
        )
    starts = list(starts)
    while len(starts) % slots:
        sizes = np.diff([*starts, end])
        largest = int(sizes.argmax())
        starts.insert(largest + 1, starts[largest] + int(sizes[largest]) // 2)
    return starts
