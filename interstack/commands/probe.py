"""probe: what frozen models know of phones."""

from __future__ import annotations

from interstack.evaluation.phone_probe import main as run_probe

__all__ = ["run_probe"]
