"""The torch DataLoader around our datasets."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import cast

import torch
from torch.utils.data import DataLoader, Dataset

from interstack.data.batch import Batch
from interstack.errors import DataError


class SpeechLoader:
    """Loads the batches of a dataset that yields whole batches, in their order.

    It holds a DataLoader instead of being one: Lightning takes a DataLoader apart and builds it
    anew around samplers that ours has no use for.

    A worker's exception reaches the main process with the worker's traceback pasted into its
    message. Our datasets therefore hand a `DataError` over as an item, and it is raised here.

    Args:
        dataset: yields batches, and knows how many.
        num_workers: worker processes; 0 decodes in the main one.
        seed: seed of the loader's own generator. Without one torch draws the workers' seeds from
            the global random state, and then a resumed run's state would differ.
    """

    def __init__(self, dataset: Dataset[Batch | DataError], num_workers: int, seed: int) -> None:
        self.dataset = dataset
        self.num_workers = num_workers
        self._loader: DataLoader[Batch | DataError] = DataLoader(
            dataset,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_use_one_thread,
            generator=torch.Generator().manual_seed(seed),
        )

    def __len__(self) -> int:
        return len(cast("Sized", self.dataset))

    def __iter__(self) -> Iterator[Batch]:
        items = iter(self._loader)
        error = None
        for item in items:
            if isinstance(item, DataError):
                error = item
                break
            yield item
        del items  # ends the workers; a traceback that held them would make that take seconds
        if error is not None:
            raise error


def _use_one_thread(_worker: int) -> None:
    """Keeps workers from competing with the training process for its cores."""
    torch.set_num_threads(1)
