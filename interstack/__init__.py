"""interstack: distil a speech foundation model into a student that grows while it trains."""

from __future__ import annotations

__version__ = "0.1.0"
