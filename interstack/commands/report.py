"""report: runs as one HTML file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from interstack.errors import ConfigurationError
from interstack.report.page import render
from interstack.report.run import Run, read_runs
from interstack.tracking.events import EVENTS_FILE
from interstack.utils.disk import write_output


def run_report(arguments: Sequence[str]) -> None:
    """Parse the command's options and write the page.

    Args:
        arguments: The words after ``report``.

    Raises:
        ConfigurationError: If a directory is none of a run, or its records are damaged.
        InterstackError: If the page can't be written.
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
    write_report(read_runs(options.runs), options.loss, options.output, "-o")
    print(f"the report is in {options.output}")


def write_report(runs: Sequence[Run], loss: float | None, output: Path, option: str) -> None:
    """Write runs as one HTML file.

    Args:
        runs: The runs.
        loss: Validation loss that they are compared at; the lowest that all reach if None.
        output: The file.
        option: What names it, for messages.

    Raises:
        ConfigurationError: If their records are damaged.
        InterstackError: If the page can't be written.
    """
    try:
        page = render(runs, loss)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"the runs' {EVENTS_FILE} can't be drawn ({type(error).__name__}: {error}): one is "
            "damaged, or another version of interstack has written it"
        ) from error
    write_output(output, page.encode(), option)
