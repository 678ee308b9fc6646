"""Where a command may not write or read: one line that names the place, and no traceback."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from interstack.cli import main
from tests.checkpointing.full_disks import NoSpace
from tests.target_cache.cached_runs import SPEECH, fit_words, settings

SPLITS = "--splits=[validation]"


def _fit(output: Path, teacher: Path) -> list[str]:
    return fit_words(output, teacher)


def _cache(output: Path, teacher: Path) -> list[str]:
    return ["cache", *settings(teacher, f"--output={output}", SPLITS)]


def _pack(output: Path, teacher: Path) -> list[str]:
    del teacher
    source = ["--source=LibriSpeechFolder", f"--source.root={SPEECH}"]
    return ["pack", *source, f"--output={output}", SPLITS]


def _probe(output: Path, teacher: Path) -> list[str]:
    del teacher
    return ["probe", f"--corpus={SPEECH}", "--upstream=log-mel", f"--json={output / 'x.json'}"]


@pytest.mark.parametrize("words", [_fit, _cache, _pack, _probe])
def test_an_output_that_may_not_be_written_is_a_line(
    words: Callable[[Path, Path], list[str]],
    teacher_directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By its permissions; those of the tests' user may allow everything."""
    output = tmp_path / "denied" / "out"
    output.mkdir(parents=True)
    with NoSpace(tmp_path / "denied", code=errno.EACCES):
        assert main(words(output, teacher_directory)) == 2
    error = capsys.readouterr().err
    assert "Permission denied" in error
    assert str(output) in error
    assert "Traceback" not in error
    assert not list(output.iterdir())


@pytest.mark.parametrize("words", [_fit, _cache, _pack])
def test_an_output_that_is_a_link_to_nowhere_is_a_line(
    words: Callable[[Path, Path], list[str]],
    teacher_directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """To a disk that is not mounted, say."""
    output = tmp_path / "out"
    output.symlink_to(tmp_path / "nowhere" / "out")
    assert main(words(output, teacher_directory)) == 2
    error = capsys.readouterr().err
    assert str(output) in error
    assert "Traceback" not in error
    assert output.is_symlink()


def test_a_split_that_may_not_be_read_is_a_line(
    teacher_directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The corpus' folder is closed to the user."""
    is_dir = Path.is_dir

    def refuse(path: Path) -> bool:
        if "closed" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", refuse)
    closed = tmp_path / "closed"
    words = fit_words(tmp_path / "run", teacher_directory)
    assert main([*words, f"--data.source.init_args.root={closed}"]) == 2
    error = capsys.readouterr().err
    assert f"{closed}" in error
    assert "can't be read or written (Permission denied): fix that" in error
