"""How targets are stored: number formats, and what each of them loses. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from interstack.errors import DataError

CacheDtype = Literal["float32", "bfloat16", "float16", "int8"]
"""``float32`` is exact; the 16-bit formats round each value, relatively by at most 2⁻⁹ (bfloat16)
or 2⁻¹² (float16); ``int8`` rounds it to one of 256 levels between the least and the greatest value
that its channel takes in the utterance, so by at most 1/510 of that range."""

TORCH_DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.uint8,
}
_LEVELS: Final = 255


class StoredValues(NamedTuple):
    """What is stored of one utterance.

    Attributes:
        values: (frames, channels) in the cache's number format.
        scale: (channels,) float32, the step between two levels; None but for ``int8``.
        offset: (channels,) float32, the value of level 0; None but for ``int8``.
    """

    values: Tensor
    scale: Tensor | None = None
    offset: Tensor | None = None

    def cpu(self) -> Self:
        """Return the same on the processor."""
        scale, offset = (part if part is None else part.cpu() for part in self[1:])
        return self._replace(values=self.values.cpu(), scale=scale, offset=offset)


class StoredTargets(NamedTuple):
    """The same of a batch's utterances, padded to the longest of them.

    Attributes:
        values: (batch, frames, channels), zeros past an utterance's end.
        scale: (batch, channels), or None.
        offset: (batch, channels), or None.
        num_frames: (batch,) int64, the valid frames.
    """

    values: Tensor
    scale: Tensor | None
    offset: Tensor | None
    num_frames: Tensor


def store(
    exact: Tensor, dtype: CacheDtype, name: str, fix: str = "leave the utterance out"
) -> StoredValues:
    """Bring an utterance's values into a number format.

    Args:
        exact: (frames, channels) float32.
        dtype: The format.
        name: The utterance, for the message.
        fix: What to do where a value is not finite, for the message.

    Raises:
        DataError: If a value is not finite, or too large for the format.
    """
    if not bool(torch.isfinite(exact).all()):
        raise DataError(f"the teacher's hidden states of {name} are not finite: {fix}")
    if dtype == "int8":
        offset, greatest = exact.amin(0), exact.amax(0)
        scale = (greatest - offset) / _LEVELS
        step = torch.where(scale > 0, scale, 1.0)  # a channel that never varies is level 0 alone
        levels = ((exact - offset) / step).round_().clamp_(0, _LEVELS)
        return StoredValues(levels.to(torch.uint8), scale, offset)
    values = exact.to(TORCH_DTYPES[dtype])
    if not bool(torch.isfinite(values).all()):
        raise DataError(
            f"the teacher's hidden states of {name} reach {float(exact.abs().max()):.3g}, too much "
            f"for {dtype}: give --dtype bfloat16, int8 or float32"
        )
    return StoredValues(values)


def collate_stored(utterances: Sequence[StoredValues]) -> StoredTargets:
    """Pad what is stored of several utterances into one batch; nothing is converted yet."""
    return StoredTargets(
        pad_sequence([each.values for each in utterances], batch_first=True),
        _stacked([each.scale for each in utterances]),
        _stacked([each.offset for each in utterances]),
        torch.tensor([len(each.values) for each in utterances]),
    )


def restore(stored: StoredTargets) -> Tensor:
    """Return the values as they were, up to rounding: (batch, frames, channels) float32."""
    values = stored.values.float()
    if stored.scale is None or stored.offset is None:
        return values
    return torch.addcmul(stored.offset[:, None], values, stored.scale[:, None])


def _stacked(rows: Sequence[Tensor | None]) -> Tensor | None:
    present = [row for row in rows if row is not None]
    return torch.stack(present) if present else None
