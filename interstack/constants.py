"""Constants that several packages share."""

from __future__ import annotations

from typing import Final

SAMPLE_RATE: Final = 16_000
"""Samples a second of every waveform in interstack; all supported teachers were trained on it."""
