"""features: hidden states of any speech encoder for a folder of audio."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from interstack.data.skips import OnCorrupt, SkipCounter, Tolerance, report_skipped
from interstack.errors import ConfigurationError, DataError
from interstack.evaluation.features import (
    DTYPES,
    FeatureExtractor,
    FeatureSettings,
    Pool,
    list_files,
    open_output,
    parse_layers,
)
from interstack.models.pretrained import Source
from interstack.target_cache.partition import Partition
from interstack.utils.environment import choose_device
from interstack.utils.progress import Reading, RunPosition, job_display
from interstack.utils.tensor_files import TensorFormat

log = logging.getLogger(__name__)


def run_features(arguments: Sequence[str]) -> None:
    """Write what is missing of an encoder's hidden states for a folder or file of audio.

    Args:
        arguments: The words after ``features``.

    Raises:
        InterstackError: If audio, model or settings can't be used.
    """
    options = _parser().parse_args(arguments)
    if options.window_seconds <= 0:
        raise ConfigurationError(f"--window-seconds is {options.window_seconds}: give more than 0")
    device = choose_device(options.device)
    part = Partition.parse(options.partition, "--partition")
    num_layers: int = Source(options.model).read_config().num_hidden_layers
    settings = FeatureSettings(
        options.model,
        parse_layers(options.layers, num_layers),
        options.format,
        options.dtype,
        options.pool,
        options.window_seconds,
        options.pad_to_30s,
    )
    files = list_files(options.audio, options.output, settings)
    extractor = FeatureExtractor(settings, device)
    open_output(options.output, settings, extractor.model.fingerprint())
    mine = [file for file in files if part.holds(str(file.output.relative_to(options.output)))]
    missing = [file for file in mine if not file.is_written()]
    if len(missing) < len(mine):
        log.info("%d of %d files are there already", len(mine) - len(missing), len(mine))
    skipped = SkipCounter()
    tolerance = Tolerance(options.on_corrupt, skipped)
    with job_display() as display:
        for number, file in enumerate(missing):
            display.update(Reading(("features",), RunPosition(number, len(missing), "file")))
            try:
                extractor.write(file)
            except DataError as error:
                tolerance.failed(error)
            else:
                tolerance.passed()
    counted = skipped.take()
    report_skipped(counted.skipped, counted.example, "files")
    log.info("hidden states of %d files are in %s", len(mine) - counted.skipped, options.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="interstack features",
        description="Write an encoder's hidden states, a file for each file of audio, in folders "
        "like the audio's. Stopped anywhere, the same command continues.",
    )
    parser.add_argument("--model", required=True, help="an export, a directory or hub id")
    parser.add_argument("--audio", type=Path, required=True, help="a folder, or one audio file")
    parser.add_argument("--output", type=Path, required=True, help="directory of hidden states")
    parser.add_argument(
        "--layers",
        nargs="+",
        default=["last"],
        help="all, last, or numbers: 0 is the encoder's input, k the output of layer k "
        "(default last)",
    )
    parser.add_argument("--format", choices=get_args(TensorFormat), default="safetensors")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="of the files")
    parser.add_argument(
        "--pool",
        choices=get_args(Pool),
        default="none",
        help="none: (layers, frames, width); mean: its mean over frames, (layers, width)",
    )
    parser.add_argument(
        "--window-seconds",
        type=float,
        default=60.0,
        help="longest audio that is computed at once; longer audio is computed in windows that "
        "overlap (default 60; a Whisper has 30 at most)",
    )
    parser.add_argument(
        "--pad-to-30s", action="store_true", help="let a Whisper attend to silence up to 30 s"
    )
    parser.add_argument(
        "--partition",
        metavar="INDEX/COUNT",
        help="this process' files, from 0/8 to 7/8; default: torchrun's rank, or all",
    )
    parser.add_argument(
        "--on-corrupt",
        choices=get_args(OnCorrupt),
        default="raise",
        help="raise: stop at audio that can't be read, naming it; skip: name the first and count "
        "(default raise)",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    return parser
