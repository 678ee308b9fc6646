"""Batches of s3prl's loaders, without audio that can't be decoded if that is to be skipped.

s3prl reads audio in three ways: one file an example, a bucket of files an example (ASR), and in the
loader's collate function (the ctc recipe).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch.utils.data import DataLoader, Dataset

from interstack.data.skips import OnCorrupt
from interstack.data.workers import load
from interstack.errors import DataError
from interstack.evaluation.superb.sox_effects import load as load_audio


class Unreadable(NamedTuple):
    """Stands for an example, or a part of one, whose audio can't be decoded.

    Attributes:
        position: Of the example in its dataset; -1 where that is not known.
        message: What is wrong, with the file's name.
    """

    position: int
    message: str


class ReadBatch(NamedTuple):
    """A batch, and what was skipped of it.

    Attributes:
        content: The batch as s3prl's expert takes it; None if nothing of it can be decoded.
        skipped: Audio that can't be decoded.
    """

    content: tuple[Any, ...] | None
    skipped: tuple[Unreadable, ...]


def read_batches(loader: DataLoader[Any], on_corrupt: OnCorrupt) -> Iterator[ReadBatch]:
    """Yield a loader's batches.

    Args:
        loader: One of s3prl's; changed in place.
        on_corrupt: ``raise`` at audio that can't be decoded, or ``skip`` it.

    Raises:
        DataError: If audio can't be decoded and is not to be skipped, or a worker has died.
    """
    if on_corrupt == "raise":
        yield from (ReadBatch(content, ()) for content in load(loader))
        return
    # torch refuses another dataset after the loader is made, since samplers know its length
    object.__setattr__(loader, "dataset", _Examples(loader.dataset))
    loader.collate_fn = _Collate(loader.collate_fn)
    yield from cast("Iterable[ReadBatch]", load(loader))


def remove_from_scores(
    dataset: Any,  # noqa: ANN401, one of s3prl's
    unreadable: Sequence[Unreadable],
    records: Mapping[str, Any],
) -> None:
    """Remove skipped audio from what an expert scores.

    Args:
        dataset: The expert's test dataset; None if it has none.
        unreadable: Skipped audio of it.
        records: The expert's records of the rest.
    """
    if not unreadable or dataset is None:
        return
    if hasattr(dataset, "pair_table"):  # trials of two files each
        dataset.pair_table = [
            trial for trial in dataset.pair_table if trial[1] in records and trial[2] in records
        ]
    if hasattr(dataset, "n_queries"):  # queries come before the documents
        dataset.n_queries -= sum(each.position < dataset.n_queries for each in unreadable)


class _Examples(Dataset[tuple[Any, tuple[Unreadable, ...]]]):
    """Pairs of an example of another dataset and its audio that can't be decoded."""

    def __init__(self, dataset: Any) -> None:  # noqa: ANN401, one of s3prl's
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Any, tuple[Unreadable, ...]]:
        try:
            return self._dataset[index], ()
        except DataError as error:
            buckets = getattr(self._dataset, "X", None)
            if buckets is None:
                return None, (Unreadable(index, str(error)),)
        root = Path(self._dataset.libri_root)
        kept, skipped = _readable(buckets[index], lambda file: root / file)
        buckets[index] = kept
        return self._dataset[index] if kept else None, skipped


class _Collate:
    """Collates the examples that can be decoded."""

    def __init__(self, collate: Callable[[list[Any]], Iterable[Any]]) -> None:
        self._collate = collate

    def __call__(self, samples: Sequence[tuple[Any, tuple[Unreadable, ...]]]) -> ReadBatch:
        skipped = tuple(each for _, parts in samples for each in parts)
        kept = [sample for sample, _ in samples if sample is not None]
        if not kept:
            return ReadBatch(None, skipped)
        try:
            return ReadBatch(tuple(self._collate(kept)), skipped)
        except DataError:  # the ctc recipe's, whose examples are files, or one bucket of them
            bucket = isinstance(kept[0], list)
            files, more = _readable(kept[0] if bucket else kept, lambda example: Path(example[0]))
        if not files:
            return ReadBatch(None, skipped + more)
        return ReadBatch(tuple(self._collate([files] if bucket else files)), skipped + more)


def _readable(
    files: Sequence[Any], path: Callable[[Any], Path]
) -> tuple[list[Any], tuple[Unreadable, ...]]:
    """Return the files that can be decoded, and what is wrong with the others."""
    kept, skipped = [], []
    for file in files:
        try:
            load_audio(path(file))
        except DataError as error:
            skipped.append(Unreadable(-1, str(error)))
        else:
            kept.append(file)
    return kept, tuple(skipped)
