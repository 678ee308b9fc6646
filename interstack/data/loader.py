"""Loaders of batches: torch's DataLoader around our datasets, and the position in an epoch."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sized
from contextlib import closing
from typing import Any, cast
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, Dataset

from interstack.data.base import Delivery, Feed
from interstack.data.batch import Batch
from interstack.data.skips import SkipTotals
from interstack.data.workers import load, prepare_worker
from interstack.errors import DataError

_log = logging.getLogger(__name__)


class SpeechLoader:
    """Loads the batches of a dataset that yields whole batches, in their order.

    It makes a DataLoader instead of being one: Lightning takes a DataLoader apart and rebuilds it
    around samplers that ours does not need.

    Args:
        dataset: Yields batches, and knows how many.
        num_workers: Worker processes; 0 decodes in the main one.
        seed: Seed of the loader's own generator. Without one torch draws the workers' seeds from
            the global random state, and then a resumed run's state would differ.
        skips: Sums what is skipped in the batches.
    """

    def __init__(
        self,
        dataset: Dataset[Delivery],
        num_workers: int,
        seed: int,
        skips: SkipTotals | None = None,
    ) -> None:
        self.dataset = dataset
        self.num_workers = num_workers
        self._seed = seed
        self._skips = skips or SkipTotals()
        self._passes: WeakSet[Generator[Batch]] = WeakSet()

    def __len__(self) -> int:
        return len(cast("Sized", self.dataset))

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches.

        Raises:
            DataError: If audio can't be read, or a worker died.
        """
        batches = self._batches(self.dataset)
        self._passes.add(batches)
        return batches

    def close(self) -> None:
        """End the workers of all passes, also of one that was left before its last batch."""
        for batches in tuple(self._passes):
            batches.close()

    def _batches(
        self, dataset: Dataset[Delivery], first: int = 0, window: int = 1
    ) -> Generator[Batch]:
        loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=prepare_worker,
            generator=torch.Generator().manual_seed(self._seed),
        )
        this_pass = object()
        error = None
        try:
            with closing(load(loader, _num_items(dataset))) as deliveries:
                for number, (batch, skips) in enumerate(deliveries, start=first):
                    if isinstance(batch, DataError):
                        error = batch
                        break
                    begins_step = number % window == 0
                    self._skips.add(this_pass, skips, begins_step=begins_step)
                    if batch is not None:
                        yield batch
        finally:
            self._skips.finalise(this_pass)
        if error is not None:
            raise error


def _num_items(dataset: Dataset[Delivery]) -> int | None:
    """Return a dataset's length; None for a single pass over a stream, which has none."""
    try:
        return len(cast("Sized", dataset))
    except TypeError:
        return None


class TrainingLoader(SpeechLoader):
    """Loads one rank's batches of an epoch, and can resume in the middle of it.

    Its length is always the whole epoch's: Lightning adds the batches done before to its own count.

    Args:
        feed: Where the batches come from.
        epoch: The epoch.
        rank: This process' rank.
        world_size: Number of ranks.
        num_workers: See `SpeechLoader`.
        seed: See `SpeechLoader`.
        skips: See `SpeechLoader`.
        window: Batches that are accumulated for an optimizer step.
    """

    def __init__(
        self,
        feed: Feed,
        *,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        skips: SkipTotals | None = None,
        window: int = 1,
    ) -> None:
        dataset = feed.training(epoch, rank, world_size)
        super().__init__(dataset, num_workers, seed, skips)
        self._feed = feed
        self._epoch = epoch
        self._rank = rank
        self._world_size = world_size
        self._window = window
        self._first_of_next_pass = 0
        self._batches_done = 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; the first pass after `load_state_dict` starts where that says.

        Raises:
            DataError: If audio can't be read, or a worker died.
        """
        # Not before the first batch is requested: Lightning makes iterators that it doesn't use.
        first, self._first_of_next_pass = self._first_of_next_pass, 0
        self._batches_done = first
        dataset = self.dataset
        if first:
            dataset = self._feed.training(self._epoch, self._rank, self._world_size, first)
        for batch in self._batches(dataset, first, self._window):
            self._batches_done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the position in the epoch, for a checkpoint.

        Its "first_batch" is the number of batches of the epoch that have been yielded. The writer
        of the checkpoint may lower that to the batches that have been trained on.
        """
        return {
            "first_batch": self._batches_done,
            "epoch": self._epoch,
            "num_batches": len(self),
            "num_workers": self.num_workers,
            "world_size": self._world_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next pass start at a checkpoint's position; what comes before is not decoded.

        The batches are then those of the epoch that was cut, bit for bit, on as many ranks as
        before, and on others too where a global batch is as many batches. Otherwise, on another
        number of ranks, they are others, and only the position counts. A stream's batches depend on
        the number of workers too, so the rest of the epoch is read with as many as its start.

        The state of another epoch is ignored, and this one starts at its first batch: that epoch
        was over when the checkpoint was written (Lightning restores a finished loader's state too).
        """
        if state["epoch"] != self._epoch:
            _log.debug("epoch %d starts at its first batch: %s is over", self._epoch, state)
            return
        self._batches_done = min(max(0, state["first_batch"]), len(self))
        self._first_of_next_pass = self._batches_done
        readers = max(1, state["num_workers"])
        if (
            self._feed.order_depends_on_workers
            and state["world_size"] == self._world_size
            and readers != max(1, self.num_workers)
        ):
            if self._rank == 0:
                _log.info(
                    "the rest of epoch %d is read by %d workers, as its start was, and not by %d: "
                    "a stream's batches depend on their number",
                    *(self._epoch, readers, self.num_workers),
                )
            self.num_workers = readers
