"""Number formats of a cache: what each of them keeps."""

from __future__ import annotations

import pytest
import torch

from interstack.errors import DataError
from interstack.target_cache.format import CacheDtype, collate_stored, restore, store


def there_and_back(values: torch.Tensor, dtype: CacheDtype) -> torch.Tensor:
    """Store one utterance and restore it."""
    return restore(collate_stored([store(values, dtype, "clip")]))[0]


def test_float32_is_exact() -> None:
    """Not one bit is lost."""
    values = torch.randn(7, 5)
    assert torch.equal(there_and_back(values, "float32"), values)


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_precision_rounds_relatively(dtype: CacheDtype, bound: float) -> None:
    """Each value stays within the format's rounding of itself, and some are rounded at all."""
    values = 10 * torch.randn(50, 20)
    error = (there_and_back(values, dtype) - values).abs()
    assert bool((error <= bound * values.abs()).all())
    assert float(error.max()) > 0


def test_eight_bits_round_within_half_a_level_of_their_channel() -> None:
    """A channel of a small range is kept as well as one of a large range."""
    values = torch.randn(50, 3) * torch.tensor([1e-3, 1.0, 1e3]) + 5
    error = (there_and_back(values, "int8") - values).abs().amax(0)
    half_level = (values.amax(0) - values.amin(0)) / 510
    assert bool((error <= half_level * 1.01 + 1e-6).all())


def test_a_channel_that_never_varies_is_exact_in_eight_bits() -> None:
    """Its scale is 0, by which nothing is divided."""
    values = torch.full((4, 2), 3.7)
    assert torch.equal(there_and_back(values, "int8"), values)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_batch_keeps_each_utterances_frames(dtype: CacheDtype) -> None:
    """Utterances of unlike length are padded, and each has scales of its own."""
    long, short = torch.randn(6, 3), 100 * torch.randn(4, 3)
    batch = collate_stored([store(long, dtype, "long"), store(short, dtype, "short")])
    assert batch.num_frames.tolist() == [6, 4]
    restored = restore(batch)
    assert torch.allclose(restored[0], there_and_back(long, dtype))
    assert torch.allclose(restored[1, :4], there_and_back(short, dtype))


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [(float("nan"), "float32", "clip are not finite"), (1e5, "float16", "too much for float16")],
)
def test_what_a_format_cant_hold_is_refused(value: float, dtype: CacheDtype, message: str) -> None:
    """The utterance is named, and formats that would do."""
    with pytest.raises(DataError, match=message):
        store(torch.full((2, 2), value), dtype, "clip")
