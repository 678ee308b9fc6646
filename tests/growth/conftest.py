"""Growth in training is tried on the small runs of the distillation's tests."""

from __future__ import annotations

import sys
from pathlib import Path

# for `small_runs`, whatever is collected
sys.path.append(str(Path(__file__).parents[1] / "distillation"))
