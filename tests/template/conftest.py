"""docs/extending.md in a directory of its own, and a run of everything that it shows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import REPOSITORY
from tests.template.extending_page import write_page


class PageRun(NamedTuple):
    """A finished run.

    Attributes:
        directory: Where it was started; the run is in ``run`` there.
        configs: Its ``--config`` options.
        output: What it printed.
    """

    directory: Path
    configs: list[str]
    output: str


@pytest.fixture(scope="session")
def page_run(tmp_path_factory: pytest.TempPathFactory) -> PageRun:
    """The page's parts, all in one run of the console script from their directory."""
    directory = tmp_path_factory.mktemp("extending")
    configs = write_page(directory)
    done = subprocess.run(
        [Path(sys.executable).with_name("interstack"), "fit", *configs],
        cwd=directory,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return PageRun(directory, configs, done.stdout + done.stderr)


@pytest.fixture
def in_page_directory(page_run: PageRun, monkeypatch: pytest.MonkeyPatch) -> Iterator[PageRun]:
    """Work in the page's directory, as if this process had been started there."""
    monkeypatch.chdir(page_run.directory)
    monkeypatch.setattr(sys, "path", [*sys.path, str(page_run.directory)])
    yield page_run
    sys.modules.pop("mymodule", None)


def clean_environment() -> dict[str, str]:
    """Return the environment without what Lightning has left there, on one thread.

    interstack is this repository's, wherever a process starts.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
