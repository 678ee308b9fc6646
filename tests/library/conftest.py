"""The page docs/library.md, run once for all tests of this folder."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import REPOSITORY
from tests.library.library_page import run_page


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page is run, with the text that it reads."""
    directory = tmp_path_factory.mktemp("library")
    shutil.copy(REPOSITORY / "README.md", directory)
    return directory


@pytest.fixture(scope="session")
def page(directory: Path) -> dict[str, Any]:
    """The names of the page's blocks after they have run as they are written."""
    with contextlib.chdir(directory):
        return run_page()


@pytest.fixture
def in_directory(directory: Path, tmp_path: Path) -> Iterator[Path]:
    """Run the test in an empty directory that has the page's text."""
    shutil.copy(directory / "README.md", tmp_path)
    with contextlib.chdir(tmp_path):
        yield tmp_path
