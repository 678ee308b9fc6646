"""Counting in loader workers, read in the main process."""

from __future__ import annotations

from ctypes import Array, c_int64
from multiprocessing.sharedctypes import RawArray

from torch.utils.data import get_worker_info


class SharedCounter:
    """A count that all loader workers add to.

    Every worker has a place of its own in shared memory, so none needs a lock.

    Args:
        num_workers: most worker processes that will ever count.
    """

    def __init__(self, num_workers: int) -> None:
        self._counts: Array[c_int64] = RawArray(c_int64, max(1, num_workers))

    def add(self) -> None:
        """Counts one."""
        worker = get_worker_info()
        self._counts[worker.id if worker else 0] += 1

    @property
    def total(self) -> int:
        """The count over all workers so far."""
        return sum(self._counts)
