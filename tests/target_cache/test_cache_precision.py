"""The check at a cache's start: of the teacher's number format, and of the cache's."""

from __future__ import annotations

from pathlib import Path

import pytest

from interstack.target_cache import build
from interstack.tracking.events import read_events
from tests.target_cache.cached_runs import cache, fit


def test_both_formats_of_a_cache_are_reported(teacher_directory: Path, tmp_path: Path) -> None:
    """What computes, and what is stored; again only where something is computed."""
    words = ("--model.teacher.dtype=bfloat16", "--dtype=int8", "--splits=[validation]")
    for _ in range(2):
        assert cache(tmp_path, teacher_directory, *words) == 0
    teacher, stored = read_events(tmp_path)
    assert (teacher["model"], teacher["format"]) == ("teacher", "bfloat16")
    assert (stored["model"], stored["format"]) == ("stored targets", "int8")
    assert 0 < stored["error"] < stored["bound"] == 0.05
    assert stored["layer"] in ("hidden state 2", "hidden state 4", "the front end's features")


def test_a_format_that_loses_more_than_rounding_is_refused(
    teacher_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before anything is stored, and not if the check is off."""
    monkeypatch.setitem(build.STORAGE_BOUNDS, "int8", 1e-5)
    words = ("--dtype=int8", "--splits=[validation]")
    assert cache(tmp_path / "cache", teacher_directory, *words) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error")]
    for part in (
        "--dtype int8",
        "the front end's features",
        "1e-05",
        "give --dtype bfloat16 or float32",
    ):
        assert part in line
    assert not list((tmp_path / "cache" / "validation").glob("*.safetensors"))
    off = "--model.precision_check=false"
    assert cache(tmp_path / "cache", teacher_directory, *words, off) == 0


def test_with_a_cache_the_student_alone_is_checked(
    exact_cache: Path, teacher_directory: Path, tmp_path: Path
) -> None:
    """The teacher is not loaded, and its targets are what they are."""
    options = (f"--data.target_cache={exact_cache}", "--trainer.precision=bf16-mixed")
    assert fit(tmp_path, teacher_directory, *options) == 0
    found = [event for event in read_events(tmp_path) if event["kind"] == "precision"]
    assert [event["model"] for event in found] == ["student"]
