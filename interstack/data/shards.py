"""Speech streamed from tar shards in lhotse's Shar format, on disk or in an object store."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

import fsspec

from interstack.data.source import Split
from interstack.data.stream_reading import Shard
from interstack.data.streams import StreamSource
from interstack.errors import DataError

INDEX_NAME: Final = "index.json"
"""Lists a folder's shards, which plain http can't: {"shards": ["recording.000000.tar", …]}."""


class Shards(StreamSource):
    """Folders of tar shards, as `interstack pack` writes them, read without unpacking.

    A folder is a local path or a URL of any kind that fsspec knows: https:// and hf:// at once,
    s3:// or gs:// with s3fs or gcsfs installed. lhotse's own Shar folders (`recording.*.tar`)
    serve too; over plain https, which can't list a folder, only with the `index.json` that
    `pack` adds.

    The shards are read here and not by lhotse's `LazySharIterator`: it opens URLs only with a
    package of its own (smart_open), where fsspec is already here for Hugging Face, and reads the
    cut manifests along, which nothing here needs.

    Args:
        train: folders to train on.
        validation: folders to validate on.
        test: folders to test and predict on.
    """

    def __init__(
        self,
        train: Sequence[str] = (),
        validation: Sequence[str] = (),
        test: Sequence[str] = (),
    ) -> None:
        self.folders: dict[Split, tuple[str, ...]] = {
            "train": tuple(train),
            "validation": tuple(validation),
            "test": tuple(test),
        }

    def shards(self, split: Split) -> Sequence[Shard]:
        """Lists a split's shards; see `StreamSource.shards`."""
        if not self.folders[split]:
            raise DataError(f"no folder of shards is named for {split}: set {self.section}.{split}")
        return [
            Shard(url, partial(_read, url), "pack them again under other names, or leave one out")
            for folder in self.folders[split]
            for name in _shard_names(folder)
            for url in [f"{folder.rstrip('/')}/{name}"]
        ]


def _shard_names(folder: str) -> list[str]:
    """Lists a folder's shards by its index, or by looking."""
    try:
        files, path = fsspec.core.url_to_fs(folder)
        if files.exists(index := f"{path.rstrip('/')}/{INDEX_NAME}"):
            names = [str(name) for name in json.loads(files.cat_file(index))["shards"]]
        else:
            found = files.glob(f"{path.rstrip('/')}/recording.*.tar")
            names = sorted(str(name).rpartition("/")[2] for name in found)
    except Exception as error:  # every file system raises its own kinds
        raise DataError(f"The shards in {folder} can't be listed ({_say(error)}).") from error
    if not names:
        raise DataError(
            f"{folder} holds no shards (recording.*.tar or {INDEX_NAME}); write some with "
            "`interstack pack`, or mend the path."
        )
    return names


def _read(url: str) -> Iterator[tuple[str, bytes]]:
    """Yields ids and encoded audio of one shard, front to back.

    Raises:
        DataError: the shard can't be reached, or is cut off.
    """
    # lhotse takes two seconds to import: only those who read shards wait for it.
    from lhotse.shar.readers.tar import iterate_tarfile_pairwise

    try:
        with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for (audio, path), _ in iterate_tarfile_pairwise(tar):
                if audio is not None:
                    yield str(path.with_suffix("")), audio
            if tar.fileobj is None or not tar.fileobj.read(1):  # a tar ends with two empty blocks
                raise tarfile.ReadError("its end is missing")
    except Exception as error:
        mend = "see that it is there and readable"
        if isinstance(error, (tarfile.TarError, RuntimeError)):  # lhotse's, of a pair cut in two
            mend = "copy or pack it anew"
        raise DataError(f"The shard {url} can't be read ({_say(error)}); {mend}.") from error


def _say(error: Exception) -> str:
    """Returns an error's message, or its kind where it has none."""
    return str(error) or type(error).__name__
