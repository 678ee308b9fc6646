"""Keep advertisements and repetitions of other packages off the terminal."""

from __future__ import annotations

import logging
import os


class _NoTips(logging.Filter):
    """Drops Lightning's advice to install its paid services' clients."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let everything else through."""
        return "Tip: For seamless" not in record.getMessage()


def hush_lightning() -> None:
    """Quieten Lightning's advice, and what jsonargparse has to say to LightningCLI's authors."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_NoTips())
