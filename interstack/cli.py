"""The command line: ``python -m interstack.cli`` or ``interstack``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from interstack.commands.lightning import run_lightning
from interstack.errors import InterstackError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; print a mendable error as one line.

    Args:
        arguments: Words of the command line; those of the process if None.

    Returns:
        The exit status: 0, or 2 after a mendable error.
    """
    try:
        run_lightning(arguments)
    except InterstackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
