"""The effects of SoX that s3prl's recipes use, now that torchaudio has none.

They follow the manual of SoX 14.4.2; ``tests/superb/test_sox_effects.py`` compares them
with the program's own output. Resampling is torchaudio's, with a filter as long as SoX's, so
that it agrees up to some −40 dB and not bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interstack.data.audio import read_samples
from interstack.errors import ConfigurationError

_RMS_WINDOWS_A_SECOND: Final = 50
"""SoX's `silence` judges the root mean square of the last 20 ms."""
_KAISER_BEST: Final = {
    "lowpass_filter_width": 64,
    "rolloff": 0.9475937167399596,
    "resampling_method": "sinc_interp_kaiser",
    "beta": 14.769656459379492,
}
"""torchaudio's own name for the filter that librosa calls so; its pass band is SoX's, 95 %."""


def load(path: str | Path, *_: object, **__: object) -> tuple[Tensor, int]:
    """Read audio as torchaudio did while it had decoders of its own.

    Args:
        path: File of any format that libsndfile reads.
        *_: Unused by s3prl.
        **__: Unused by s3prl.

    Returns:
        (channels, num_samples) float32 in [-1, 1], and the sample rate.

    Raises:
        DataError: If it can't be read.
    """
    samples, rate = read_samples(str(path), str(path))
    return torch.from_numpy(samples.T.copy()), rate


def read(
    path: str, *_: object, start: int = 0, stop: int | None = None, **__: object
) -> tuple[NDArray[np.float64], int]:
    """Read audio as ``soundfile.read`` does, of which s3prl's diarization reads a segment.

    Args:
        path: See `load`.
        *_: Unused by s3prl.
        start: First sample.
        stop: Sample after the last one; None: to the end.
        **__: Unused by s3prl.

    Returns:
        (num_samples,) or (num_samples, channels), and the sample rate.

    Raises:
        DataError: If it can't be read.
    """
    samples, rate = read_samples(path, path)
    wanted = samples[start:stop].astype(np.float64)
    return wanted[:, 0] if wanted.shape[1] == 1 else wanted, rate


def apply_effects_file(
    path: str | Path, effects: Sequence[Sequence[str]], *_: object, **__: object
) -> tuple[Tensor, int]:
    """Read audio and apply effects one after the other.

    Args:
        path: See `load`.
        effects: Names with their arguments, of ``channels 1``, ``rate``, ``gain`` and ``silence``.
        *_: Unused by s3prl.
        **__: Unused by s3prl.

    Returns:
        (channels, num_samples) float32, and the sample rate.

    Raises:
        ConfigurationError: If another effect is required.
        DataError: If the file can't be read.
    """
    waveform, rate = load(path)
    for name, *arguments in effects:
        if name not in _EFFECTS:
            raise ConfigurationError(
                f"SoX's effect {name} is not among {', '.join(_EFFECTS)}, which s3prl's recipes use"
            )
        waveform, rate = _EFFECTS[name](waveform, rate, arguments)
    return waveform, rate


def _channels(waveform: Tensor, rate: int, arguments: Sequence[str]) -> tuple[Tensor, int]:
    """Mix down to one channel."""
    if list(arguments) != ["1"]:
        raise ConfigurationError(
            f"SoX's effect channels {' '.join(arguments)} is not supported: give channels 1"
        )
    return waveform.mean(0, keepdim=True), rate


def _rate(waveform: Tensor, rate: int, arguments: Sequence[str]) -> tuple[Tensor, int]:
    """Resample."""
    wanted = int(arguments[0])
    if wanted == rate:
        return waveform, rate
    from torchaudio.functional import resample

    return resample(waveform, rate, wanted, **_KAISER_BEST), wanted


def _gain(waveform: Tensor, rate: int, arguments: Sequence[str]) -> tuple[Tensor, int]:
    """Amplify by decibels; SoX's samples are integers, which clip."""
    return (waveform * 10 ** (float(arguments[0]) / 20)).clamp(-1, 1), rate


def _silence(waveform: Tensor, rate: int, arguments: Sequence[str]) -> tuple[Tensor, int]:
    """Cut silence from the start, and every longer pause: ``1 DURATION THRESHOLD% -1 …``.

    Sound starts where the level has been above the first threshold for the first duration; it ends
    where it has been below the second for the second one, which is cut, and the search restarts.
    """
    periods, sound, above, pauses, pause, below = arguments
    if (periods, pauses) != ("1", "-1") or not (above.endswith("%") and below.endswith("%")):
        raise ConfigurationError(
            f"SoX's effect silence {' '.join(arguments)} is not supported: give 1 … -1 … in %"
        )
    samples = waveform[0].double().numpy()
    window = rate // _RMS_WINDOWS_A_SECOND
    needed, longest = (round(float(seconds) * rate) for seconds in (sound, pause))
    loud, quiet = (float(level.rstrip("%")) / 100 for level in (above, below))
    kept, offset = [], 0
    while offset < len(samples):
        level = _running_level(samples[offset:], window)
        start = _first_run(level >= loud, needed)
        if start is None:
            break
        end = _first_run(level[start + needed :] < quiet, longest)
        if end is None:
            kept.append(samples[offset + start :])
            break
        kept.append(samples[offset + start : offset + start + needed + end])
        offset += start + needed + end + longest
    found = np.concatenate(kept) if kept else np.zeros(0)
    return torch.from_numpy(found).float()[None], rate


def _running_level(samples: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the root mean square of the last samples at each one, with silence before them."""
    total = np.concatenate([[0.0], np.cumsum(samples**2)])
    start = np.maximum(np.arange(1, len(samples) + 1) - window, 0)
    level: NDArray[np.float64] = np.sqrt(np.maximum(total[1:] - total[start], 0.0) / window)
    return level


def _first_run(holds: NDArray[np.bool_], length: int) -> int | None:
    """Return the first index from which a condition holds for so many samples in a row."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], holds.astype(np.int8), [0]])))
    starts, ends = edges[::2], edges[1::2]
    long_enough = np.flatnonzero(ends - starts >= length)
    return int(starts[long_enough[0]]) if len(long_enough) else None


_EFFECTS: Final[dict[str, Callable[[Tensor, int, Sequence[str]], tuple[Tensor, int]]]] = {
    "channels": _channels,
    "rate": _rate,
    "gain": _gain,
    "silence": _silence,
}
