"""The terminal: tables and times as they are printed, and what is kept off it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_FILE_WIDTH: Final = 140


def table_console() -> Console:
    """Return a console as wide as the terminal, or wide where it is a file."""
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)


def make_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]] = (),
    *,
    title: str | None = None,
    caption: str | None = None,
) -> Table:
    """Return a table of names in the first column and figures in the others.

    Args:
        headers: Of the columns.
        rows: The cells; more may be added to the table.
        title: What stands above it.
        caption: What stands below it.
    """
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD)
    table.add_column(headers[0], overflow="fold")
    for header in headers[1:]:
        table.add_column(header, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


class _NoTips(logging.Filter):
    """Drops Lightning's advice to install its paid services' clients."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let everything else through."""
        return "Tip: For seamless" not in record.getMessage()


def hush_lightning() -> None:
    """Silence Lightning's advice and jsonargparse's warnings to LightningCLI's authors."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_NoTips())
