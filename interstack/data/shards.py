"""Speech streamed from tar shards in lhotse's Shar format, on disk or in an object store."""

from __future__ import annotations

import json
import logging
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import fsspec
import numpy as np
from rich.progress import track

from interstack.constants import SAMPLE_RATE
from interstack.data.audio import Decoder, Utterance, decode_each
from interstack.data.base import Split, check_rate
from interstack.data.folder import FileSource
from interstack.data.skips import OnCorrupt, SkipCounter, Tolerance, report_skipped
from interstack.data.streaming import Shard, StreamSource
from interstack.errors import ConfigurationError, DataError
from interstack.utils.disk import write_errors

INDEX_NAME: Final = "index.json"
"""Lists a folder's shards, which plain http can't: {"shards": ["recording.000000.tar", …]}."""

_log = logging.getLogger(__name__)


class Shards(StreamSource):
    """Folders of tar shards, as `interstack pack` writes them, read without unpacking.

    A folder is a local path or a URL of any kind that fsspec knows: https:// and hf:// at once,
    s3:// or gs:// with s3fs or gcsfs installed. lhotse's own Shar folders (`recording.*.tar`)
    serve too; over plain https, which can't list a folder, only with the `index.json` that
    `pack` adds.

    The shards are read here and not by lhotse's `LazySharIterator`: it opens URLs only with a
    package of its own (smart_open), where fsspec is already here for Hugging Face, and reads the
    cut manifests too, which nothing here needs.

    Args:
        train: Folders to train on.
        validation: Folders to validate on.
        test: Folders to test and predict on.
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
        """List a split's shards; see `StreamSource.shards`."""
        if not self.folders[split]:
            raise DataError(f"no folder of shards is named for {split}: set {self.section}.{split}")
        return [
            Shard(
                url, partial(_read, url), "pack them again under other names, or remove one of them"
            )
            for folder in self.folders[split]
            for name in _shard_names(folder)
            for url in [f"{folder.rstrip('/')}/{name}"]
        ]


def _shard_names(folder: str) -> list[str]:
    """List a folder's shards by its index, or by looking."""
    try:
        files, path = fsspec.core.url_to_fs(folder)
        if files.exists(index := f"{path.rstrip('/')}/{INDEX_NAME}"):
            names = [str(name) for name in json.loads(files.cat_file(index))["shards"]]
        else:
            found = files.glob(f"{path.rstrip('/')}/recording.*.tar")
            names = sorted(str(name).rpartition("/")[2] for name in found)
    except Exception as error:  # every file system raises its own kinds
        raise DataError(
            f"the shards in {folder} can't be listed ({_message(error)}): see that it is there and "
            "readable"
        ) from error
    if not names:
        raise DataError(
            f"{folder} holds no shards (recording.*.tar or {INDEX_NAME}): write some with "
            "`interstack pack`, or give another folder"
        )
    return names


def _read(url: str) -> Iterator[tuple[str, bytes]]:
    """Yield ids and encoded audio of one shard, front to back.

    Raises:
        DataError: If the shard can't be reached, or is cut off.
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
        fix = "see that it is there and readable"
        if isinstance(error, (tarfile.TarError, RuntimeError)):  # lhotse's, of a pair cut in two
            fix = "copy or pack it again"
        raise DataError(f"the shard {url} can't be read ({_message(error)}): {fix}") from error


def _message(error: Exception) -> str:
    """Return an error's message, or its kind where it has none."""
    return str(error) or type(error).__name__


def pack(
    source: FileSource,
    output: Path,
    splits: Sequence[Split] = ("train", "validation", "test"),
    utterances_per_shard: int = 1000,
    seed: int = 0,
    on_corrupt: OnCorrupt = "raise",
    resample: bool = False,
) -> dict[Split, int]:
    """Write splits of a corpus as tar shards, FLAC inside, in lhotse's Shar format.

    `output/train` and so on are then what `Shards` reads. The utterances are shuffled, since a
    reader sees only a small window of a shard at a time, and windows of one speaker train badly.
    Each split's folder appears when it is complete: one that was interrupted is restarted.

    Args:
        source: The corpus.
        output: Folder to write to; must not hold the splits yet.
        splits: The splits to pack.
        utterances_per_shard: A thousand of LibriSpeech's make some 200 MB. Have at least as many
            shards as ranks × workers will read them.
        seed: Seed of the shuffle.
        on_corrupt: raise: stop at audio that can't be decoded, naming it; skip: name the
            first and count them.
        resample: Resample other rates to 16 kHz instead of refusing them.

    Returns:
        How many utterances each split got.

    Raises:
        DataError: If a split is missing, empty, corrupt, at another rate, or packed already.
        ConfigurationError: If `utterances_per_shard` is below 1.
        InterstackError: If the disk is full; splits that are complete are kept.
    """
    if utterances_per_shard < 1:
        raise ConfigurationError(
            f"--utterances_per_shard is {utterances_per_shard}: give 1 or more"
        )
    source.section, source.corrupt_option = "--source", "--on_corrupt"
    source.prepare(splits)
    packed: dict[Split, int] = {}
    for split in splits:
        target = Path(output) / split
        if target.exists():
            raise DataError(f"{target} exists already: remove it, or give another --output")
        utterances, _ = source.checked_utterances(split, on_corrupt)
        for utterance in utterances:
            check_rate(utterance, resample, "--resample")
        order = np.random.default_rng(seed).permutation(len(utterances))
        partial_ = target.with_name(f".{split}.partial")
        shuffled = [utterances[index] for index in order]
        left = json.dumps(list(splits[len(packed) :]))
        kept = f" ({', '.join(packed)} is kept)" if packed else ""
        fix = f"free space, then give the same command with --splits '{left}'{kept}"
        try:
            with write_errors(target, fix):
                shutil.rmtree(partial_, ignore_errors=True)
                partial_.mkdir(parents=True)
                progress = track(shuffled, description=f"packing {split}", transient=True)
                tolerance = Tolerance(on_corrupt, SkipCounter())
                number = _write(progress, partial_, utterances_per_shard, tolerance)
                skipped = tolerance.skips.take()
                report_skipped(skipped.skipped, skipped.example, f"utterances of {split}")
                if not number:
                    raise DataError(f"no utterance of {split} can be decoded: {skipped.example}")
                partial_.rename(target)
                packed[split] = number
        finally:
            shutil.rmtree(partial_, ignore_errors=True)
        _log.info("packed %d utterances of %s to %s", packed[split], split, target)
    return packed


def _write(
    utterances: Iterable[Utterance], folder: Path, utterances_per_shard: int, tolerance: Tolerance
) -> int:
    """Write shards and their index, and return the number of utterances written."""
    # lhotse's SharWriter would decode by itself; with its two halves the audio comes through our
    # decoder, which names what is corrupt, mixes and resamples just as training does.
    from lhotse import AudioSource, Recording
    from lhotse.shar.utils import to_shar_placeholder
    from lhotse.shar.writers import AudioTarWriter, JsonlShardWriter

    written = 0
    with (
        AudioTarWriter(f"{folder}/recording.%06d.tar", utterances_per_shard, "flac") as audio,
        JsonlShardWriter(f"{folder}/cuts.%06d.jsonl.gz", utterances_per_shard) as cuts,
    ):
        for utterance, waveform in decode_each(utterances, Decoder(), tolerance):
            recording = Recording(
                id=utterance.id,
                sources=[AudioSource(type="memory", channels=[0], source=b"")],
                sampling_rate=SAMPLE_RATE,
                num_samples=len(waveform),
                duration=len(waveform) / SAMPLE_RATE,
            )
            audio.write(utterance.id, waveform[None].numpy(), SAMPLE_RATE, manifest=recording)
            cuts.write(to_shar_placeholder(recording).to_cut())
            written += 1
    names = [Path(name).name for name in audio.output_paths]
    (folder / INDEX_NAME).write_text(json.dumps({"shards": names, "utterances": written}))
    return written
