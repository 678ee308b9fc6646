"""Lengths that libsndfile guesses or ignores: MP3 without a length, and files that are cut off."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Final, Literal, NamedTuple

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
"""In place of a length that is stated nowhere."""


def length_by_frames(audio: str | bytes) -> int | None:
    """Return the samples of an MP3 that does not state them, by counting its frames.

    libsndfile divides the file's size by the first frame's, tags of artist and title included.

    Args:
        audio: Path of the file, or its bytes.

    Returns:
        The samples a channel; None where the file states its length, so that libsndfile knows it;
        ``UNKNOWN`` where the bit rate varies.
    """
    with BytesIO(audio) if isinstance(audio, bytes) else Path(audio).open("rb") as file:
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


_ReadAt = Callable[[int, int], bytes]
"""Read so many bytes from a position of a file on."""


class _Chunks(NamedTuple):
    """How a format lays out its chunks, of which one holds the samples.

    Attributes:
        order: Of the bytes in its numbers.
        first: Where the first chunk begins.
        name_bytes: Length of a chunk's name.
        size_bytes: Length of its size, which follows.
        samples: What the names of chunks of samples begin with.
        align: Chunks begin at multiples of it.
        counts_header: Whether a chunk's size includes its name and its size.
    """

    order: Literal["little", "big"]
    first: int
    name_bytes: int
    size_bytes: int
    samples: tuple[bytes, ...]
    align: int = 1
    counts_header: bool = False


_CHUNKS: Final = {
    b"RIFF": _Chunks("little", 12, 4, 4, (b"data",), 2),
    b"RF64": _Chunks("little", 12, 4, 4, (b"data",), 2),
    b"RIFX": _Chunks("big", 12, 4, 4, (b"data",), 2),
    b"FORM": _Chunks("big", 12, 4, 4, (b"SSND", b"BODY"), 2),
    b"riff": _Chunks("little", 40, 16, 8, (b"data",), 8, counts_header=True),
    b"caff": _Chunks("big", 8, 4, 8, (b"data",)),
    b"Crea": _Chunks("little", 26, 1, 3, (b"\1", b"\x09")),
}
"""By what a file begins with: WAV, AIFF, 8SVX, W64, CAF and VOC."""
_MOST_CHUNKS: Final = 1000
_LONGEST_PAGE: Final = 27 + 255 + 255 * 255
"""Bytes of a page of Ogg at most (RFC 3533)."""


def truncation(source: int | BytesIO, num_frames: int) -> str | None:
    """Return how a file ends too early, for a message; None if it does not, or states no end.

    Headers of streams state no size, or one that stands for "to the end". One that is too large by
    the header itself is a known fault of writers, and nothing is missing then.

    Args:
        source: Descriptor of the file, or its bytes.
        num_frames: Samples a channel that libsndfile finds in it.
    """
    if isinstance(source, BytesIO):
        content = source.getvalue()
        size = len(content)

        def read_at(num_bytes: int, position: int) -> bytes:
            return content[position : position + num_bytes]
    else:
        size = os.fstat(source).st_size
        read_at = partial(os.pread, source)
    head = read_at(1024, 0)
    if head[:4] == b"OggS":
        return None if _ends_with_page(read_at, size) else "its last page is incomplete"
    begin, stated = _stated(head, read_at, size)
    there = size - begin
    missing = stated - there
    if missing < 2 or missing * num_frames < there or stated in (size, size - 8):
        return None
    return f"its header states {stated} bytes of samples, and {there} are there"


def _stated(head: bytes, read_at: _ReadAt, size: int) -> tuple[int, int]:
    """Return where samples begin, and their bytes by the header; zeros where it states none."""
    if layout := _CHUNKS.get(head[:4]):
        return _stated_by_chunk(layout, read_at, size)
    if head[:4] in (b".snd", b"dns."):
        order: Literal["little", "big"] = "big" if head[:4] == b".snd" else "little"
        begin, stated = (int.from_bytes(head[at : at + 4], order) for at in (4, 8))
        return (0, 0) if _is_open(stated, 4) else (begin, stated)
    if head[:8] == b"NIST_1A\n":
        return _stated_by_sphere(head)
    return 0, 0


def _stated_by_chunk(layout: _Chunks, read_at: _ReadAt, size: int) -> tuple[int, int]:
    position, large = layout.first, 0
    header_bytes = layout.name_bytes + layout.size_bytes
    for _ in range(_MOST_CHUNKS):
        header = read_at(header_bytes, position)
        if len(header) < header_bytes:
            break
        stated = int.from_bytes(header[layout.name_bytes :], layout.order)
        begin = position + header_bytes
        if header.startswith(b"ds64"):  # RF64's sizes, which take more than four bytes
            large = int.from_bytes(read_at(8, begin + 8), "little")
        if header.startswith(layout.samples):
            if _is_open(stated, layout.size_bytes):
                stated = 0 if _is_open(large, 8) else large
            return begin, stated - header_bytes if layout.counts_header and stated else stated
        length = stated if layout.counts_header else header_bytes + stated
        if length < header_bytes:
            break
        position += length + -length % layout.align
        if position >= size:
            break
    return 0, 0


def _is_open(stated: int, size_bytes: int) -> bool:
    """Return whether a size stands for "to the end", as programs write it that can't go back.

    All bits, or all but the sign, each less the header or rounded down: 0xFFFFFFFF of ffmpeg,
    0x7FFFF000 and 0x7F000000 of SoX, 0x80000000 of arecord.
    """
    if size_bytes == 4:
        return stated == 0 or 0x7F000000 <= stated <= 0x80000000 or stated >= 0xFFFF0000
    return stated == 0 or stated >= (0xFFFFFF if size_bytes == 3 else 1 << 62)


def _stated_by_sphere(head: bytes) -> tuple[int, int]:
    """Read the header of NIST SPHERE: its size in the second line, then a field a line."""
    if b"shorten" in head or b"shortpack" in head:
        return 0, 0
    fields = dict(re.findall(rb"(\w+) -i (\d+)", head))
    counts = [
        int(fields.get(name, default))
        for name, default in ((b"sample_count", 0), (b"channel_count", 1), (b"sample_n_bytes", 1))
    ]
    begin = head[8:16].strip()
    return (int(begin), counts[0] * counts[1] * counts[2]) if begin.isdigit() else (0, 0)


def _ends_with_page(read_at: _ReadAt, size: int) -> bool:
    """Return whether a file of Ogg ends with a complete page; other bytes may follow it."""
    start = max(0, size - _LONGEST_PAGE)
    tail = read_at(size - start, start)
    last_is_complete, position = True, tail.find(b"OggS")
    while position >= 0:
        header = tail[position : position + 27]
        if len(header) < 27:
            return False
        if header[4] == 0 and header[5] < 8:
            sizes = tail[position + 27 : position + 27 + header[26]]
            end = position + 27 + header[26] + sum(sizes)
            if last_is_complete := end <= len(tail):
                position = end - 4
        position = tail.find(b"OggS", position + 4)
    return last_is_complete
