"""Durations and sizes as text."""

from __future__ import annotations

import pytest

from interstack.utils.units import format_bytes, format_duration


@pytest.mark.parametrize(
    ("seconds", "long", "compact"),
    [(59.6, "0:01:00", "1:00"), (123, "0:02:03", "2:03"), (93_723, "26:02:03", "26:02:03")],
)
def test_durations_have_hours_minutes_and_seconds(seconds: float, long: str, compact: str) -> None:
    """Rounded to seconds; days are hours; the compact form lacks hours where there are none."""
    assert format_duration(seconds) == long
    assert format_duration(seconds, compact=True) == compact


def test_sizes_have_the_unit_that_suits_them() -> None:
    """Megabytes below one gigabyte."""
    assert format_bytes(12_340_000) == "12.3 MB"
    assert format_bytes(1.5e9) == "1.50 GB"
