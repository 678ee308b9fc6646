"""The suite is a package, so that a test finds the helpers of another folder by their name."""

from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[1]
