"""Where tables are printed."""

from __future__ import annotations

import sys
from typing import Final

from rich.console import Console

_FILE_WIDTH: Final = 140


def table_console() -> Console:
    """Return a console as wide as the terminal; a file has no width, and gets a generous one."""
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
