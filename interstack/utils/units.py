"""Durations and sizes as text, the same everywhere."""

from __future__ import annotations


def format_duration(seconds: float, *, compact: bool = False) -> str:
    """Return a duration as hours, minutes and seconds: ``1:02:03``.

    Args:
        seconds: The duration.
        compact: Without the hours where there are none: ``2:03``.
    """
    minutes, rest = divmod(round(seconds), 60)
    if compact and minutes < 60:
        return f"{minutes}:{rest:02}"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def format_bytes(num_bytes: float) -> str:
    """Return a size in the unit that suits it: ``1.50 GB``, ``12.3 MB``."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
