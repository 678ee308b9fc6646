"""The terminal: where tables are printed, and what is kept off it."""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

from rich.console import Console

_FILE_WIDTH: Final = 140


def table_console() -> Console:
    """Return a console as wide as the terminal, or wide where it is a file."""
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)


class _NoTips(logging.Filter):
    """Drops Lightning's advice to install its paid services' clients."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let everything else through."""
        return "Tip: For seamless" not in record.getMessage()


def hush_lightning() -> None:
    """Silence Lightning's advice and jsonargparse's warnings to LightningCLI's authors."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_NoTips())
