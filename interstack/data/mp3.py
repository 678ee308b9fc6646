"""Whether an MP3's length can be trusted, which libsndfile estimates where no header states it.

Frame headers are laid out as in ISO/IEC 11172-3 and 13818-3.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

_LENGTH_TAGS: Final = (b"Xing", b"Info", b"VBRI")
_LONGEST_FRAME: Final = 1441
_RATES: Final = {
    3: (44_100, 48_000, 32_000),
    2: (22_050, 24_000, 16_000),
    0: (11_025, 12_000, 8000),
}
"""Samples a second of MPEG-1, MPEG-2 and MPEG-2.5, by the bits that name these."""
_KILOBITS: Final = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates of layer III in MPEG-1, and in the others."""


UNKNOWN: Final = 0
"""In place of a length that nothing tells."""


def length_by_frames(audio: str | bytes) -> int | None:
    """Return the samples of an MP3 that does not state them, by counting its frames.

    libsndfile divides the file's size by the first frame's, tags of artist and title included.

    Args:
        audio: Path of the file, or its bytes.

    Returns:
        The samples a channel; None where the file states its length, so that libsndfile knows it;
        ``UNKNOWN`` where the bit rate varies.
    """
    with io.BytesIO(audio) if isinstance(audio, bytes) else Path(audio).open("rb") as file:
        file.seek(_first_frame(file.read(10)))
        data = file.read(_LONGEST_FRAME)
        first = _frame(data, 0)
        if first is None:
            return None  # of another layer, or with something before it: libsndfile has searched
        if any(tag in data[: first[1]] for tag in _LENGTH_TAGS):
            return None
        data += file.read()
    position, frames = 0, 0
    while (frame := _frame(data, position)) is not None:
        if frame[0] != first[0]:
            return UNKNOWN
        position += frame[1]
        frames += position <= len(data)  # a last one that is cut off is not decoded
    first_version = data[1] >> 3 & 3 == 3
    return frames * (1152 if first_version else 576)


def _first_frame(data: bytes) -> int:
    """Return where the first frame begins: after an ID3v2 tag, whose size has 7 bits a byte."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def _frame(data: bytes, position: int) -> tuple[int, int] | None:
    """Return bit rate and bytes of the layer III frame at a position; None: there is none."""
    header = data[position : position + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version, kilobits, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version not in _RATES or not 0 < kilobits < 15 or rate == 3:
        return None
    first_version = version == 3
    bit_rate = _KILOBITS[first_version][kilobits]
    num_bytes = (144_000 if first_version else 72_000) * bit_rate // _RATES[version][rate]
    return bit_rate, num_bytes + (header[2] >> 1 & 1)
