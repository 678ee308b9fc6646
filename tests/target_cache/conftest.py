"""Caches that several tests read and none changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.target_cache.cached_runs import cache


@pytest.fixture(scope="session")
def exact_cache(tmp_path_factory: pytest.TempPathFactory, teacher_directory: Path) -> Path:
    """A finished cache in float32, with the shared front end's features."""
    directory = tmp_path_factory.mktemp("caches") / "float32"
    assert cache(directory, teacher_directory, "--dtype=float32") == 0
    return directory
