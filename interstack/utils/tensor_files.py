"""Files of one tensor that are written piece by piece, so that it need not fit the memory."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

TensorFormat = Literal["safetensors", "npy"]

_SAFETENSORS: Final = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_NUMPY: Final = {torch.float32: "<f4", torch.float16: "<f2"}


def write_pieces(path: Path, header: bytes, frames: int, pieces: Iterable[Tensor]) -> None:
    """Write a tensor (states, frames, width) of which no more than one piece is in memory.

    The file gets its name when it is complete.

    Args:
        path: The file; its folder is made.
        header: From `safetensors_header` or `npy_header`.
        frames: Of all pieces together.
        pieces: (states, some frames, width), one after another in time.

    Raises:
        OSError: If it can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(header)
            done = 0
            for piece in pieces:
                states = piece.cpu().contiguous()
                stride = states.shape[2] * states.element_size()
                for index, state in enumerate(states):
                    file.seek(len(header) + (index * frames + done) * stride)
                    file.write(state.view(torch.uint8).numpy().data)
                done += states.shape[1]
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def safetensors_header(
    name: str, dtype: torch.dtype, shape: tuple[int, ...], metadata: Mapping[str, str]
) -> bytes:
    """Return what a safetensors file of one tensor begins with.

    Eight bytes of the header's length and the header in JSON, padded so that the tensor is aligned;
    safetensors' own functions take whole tensors only.

    Args:
        name: The tensor's.
        dtype: float32, float16 or bfloat16.
        shape: Of the whole tensor.
        metadata: Kept beside it.
    """
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    content = {
        "__metadata__": {key: _printable(text) for key, text in metadata.items()},
        name: {"dtype": _SAFETENSORS[dtype], "shape": shape, "data_offsets": (0, size)},
    }
    text = json.dumps(content, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def npy_header(dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    """Return what NumPy's file of an array begins with.

    Args:
        dtype: float32 or float16.
        shape: Of the whole array.
    """
    header = io.BytesIO()
    facts = {"descr": _NUMPY[dtype], "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()


def _printable(text: str) -> str:
    """Return a text that is UTF-8, also of a file name that is not."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
