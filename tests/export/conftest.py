"""Runs that several tests export from and none changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.target_cache.cached_runs import fit


@pytest.fixture(scope="session")
def grown_run(tmp_path_factory: pytest.TempPathFactory, teacher_directory: Path) -> Path:
    """A finished run that grew from 2 to 4 layers, with a shared front end of a group norm."""
    directory = tmp_path_factory.mktemp("runs") / "grown"
    assert fit(directory, teacher_directory) == 0
    return directory


@pytest.fixture(scope="session")
def layer_norm_run(tmp_path_factory: pytest.TempPathFactory, teacher_directory: Path) -> Path:
    """A finished run whose student has a front end of its own with layer norms."""
    directory = tmp_path_factory.mktemp("runs") / "layer_norm"
    options = (
        "--model.student.front_end=own",
        "--model.student.feat_extract_norm=layer",
        "--model.student.conv_dim=[8,8,8,8,8,8,8]",
    )
    assert fit(directory, teacher_directory, *options) == 0
    return directory
