"""Packing a folder of speech into tar shards that can be streamed."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rich.progress import track

from interstack.checkpointing.disk import write_errors
from interstack.constants import SAMPLE_RATE
from interstack.data.decoding import Decoder, decode_each
from interstack.data.feed import check_rate
from interstack.data.files import FileSource
from interstack.data.left_out import LeftOutHere, report_skipped
from interstack.data.shards import INDEX_NAME
from interstack.data.source import Split
from interstack.data.tolerance import OnCorrupt, Tolerance
from interstack.data.utterance import Utterance
from interstack.errors import ConfigurationError, DataError

_log = logging.getLogger(__name__)


def pack(
    source: FileSource,
    output: Path,
    splits: Sequence[Split] = ("train", "validation", "test"),
    utterances_per_shard: int = 1000,
    seed: int = 0,
    on_corrupt: OnCorrupt = "raise",
    resample: bool = False,
) -> dict[Split, int]:
    """Writes splits of a corpus as tar shards, FLAC inside, in lhotse's Shar format.

    `output/train` and so on are then what `Shards` reads. The utterances are shuffled, since a
    reader sees only a small window of a shard at a time, and windows of one speaker train badly.
    Each split's folder appears when it is complete: one that was interrupted is begun anew.

    Args:
        source: the corpus.
        output: folder to write to; must not hold the splits yet.
        splits: the splits to pack.
        utterances_per_shard: a thousand of LibriSpeech's make some 200 MB. Have at least as many
            shards as ranks × workers will read them.
        seed: seed of the shuffle.
        on_corrupt: raise: stop at audio that can't be decoded, naming it; skip: leave it out,
            name the first and count them.
        resample: resample other rates to 16 kHz instead of refusing them.

    Returns:
        How many utterances each split got.

    Raises:
        DataError: a split is missing, empty, corrupt, at another rate, or packed already.
        ConfigurationError: shards of less than one utterance.
        InterstackError: the disk is full; splits that are complete are kept.
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
                tolerance = Tolerance(on_corrupt, LeftOutHere())
                number = _write(progress, partial_, utterances_per_shard, tolerance)
                skipped = tolerance.left_out.take()
                report_skipped(skipped.skipped, skipped.example, f"utterances of {split}")
                if not number:
                    raise DataError(f"No utterance of {split} can be decoded: {skipped.example}")
                partial_.rename(target)
                packed[split] = number
        finally:
            shutil.rmtree(partial_, ignore_errors=True)
        _log.info("packed %d utterances of %s to %s", packed[split], split, target)
    return packed


def _write(
    utterances: Iterable[Utterance], folder: Path, utterances_per_shard: int, tolerance: Tolerance
) -> int:
    """Writes shards and their index, and returns the number of utterances written."""
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
