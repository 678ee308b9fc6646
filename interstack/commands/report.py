"""report: runs as one HTML file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from interstack.checkpointing.atomic import write_whole
from interstack.errors import ConfigurationError
from interstack.report.page import render
from interstack.report.story import read_stories


def run_report(arguments: Sequence[str]) -> None:
    """Parse the command's options and write the page.

    Args:
        arguments: The words after ``report``.

    Raises:
        ConfigurationError: If a directory is none of a run, or the page can't be written.
    """
    parser = argparse.ArgumentParser(
        prog="interstack report",
        description="Show runs, finished or not, in one HTML file without network or account.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's directory")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the file")
    parser.add_argument(
        "--loss",
        type=float,
        help="validation loss that runs are compared at (default: the lowest that all reach)",
    )
    options = parser.parse_args(arguments)
    if options.loss is not None and not options.loss > 0:
        raise ConfigurationError(f"--loss {options.loss:g} has to be above 0")
    page = render(read_stories(options.runs), options.loss)
    try:
        write_whole(options.output, page.encode())
    except OSError as error:
        raise ConfigurationError(
            f"{options.output} can't be written ({error.strerror}): give -o another file"
        ) from error
    print(f"the report is in {options.output}")
