"""``interstack new``: the project trains and passes its own tests as it is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from interstack.cli import main
from tests import REPOSITORY
from tests.template.conftest import clean_environment


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as the command makes it."""
    directory = tmp_path_factory.mktemp("projects") / "my-project"
    assert main(["new", str(directory)]) == 0
    return directory


def make(project: Path, *words: str) -> str:
    """Run a target of the project's Makefile with this Python; return what it printed."""
    done = subprocess.run(
        ["make", f"PYTHON={sys.executable}", *words],
        cwd=project,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_new_project_passes_its_own_tests(project: Path) -> None:
    """Offline, in the environment that interstack is in."""
    assert "5 passed" in make(project, "test")


@pytest.mark.slow
def test_a_new_project_trains_and_reports(project: Path) -> None:
    """By its Makefile; the student grows by the project's own operator."""
    printed = make(project, "train", "ARGS=--trainer.max_steps=3")
    assert "by my_project.operators.clone_from_top, 1 1 2 2 3 3" in printed
    make(project, "report")
    assert (project / "runs" / "first" / "report.html").is_file()


def test_a_new_project_has_no_placeholder_and_good_form(tmp_path: Path) -> None:
    """Its code is formatted and linted, by the settings of its pyproject.toml."""
    project = tmp_path / "my-project"
    assert main(["new", str(project)]) == 0
    texts = [path for path in project.rglob("*") if path.is_file() and "assets" not in path.parts]
    assert {path.name for path in texts} >= {
        ".gitignore",
        "Makefile",
        "README.md",
        "pyproject.toml",
        "run.yaml",
        "test_my_project.py",
    }
    assert not [path for path in texts if path.suffix == ".jinja" or "{{" in path.read_text()]
    ruff = Path(sys.executable).with_name("ruff")
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        subprocess.run([ruff, *command, "."], cwd=project, check=True)


def test_a_new_project_has_the_embedded_speech_and_teacher(project: Path) -> None:
    """As files of its own, with the licences."""
    assets = project / "assets"
    assert not any(path.is_symlink() for path in assets.rglob("*"))
    for part in ("speech", "teacher"):
        names = {path.relative_to(assets) for path in (assets / part).rglob("*")}
        original = REPOSITORY / "assets"
        assert names == {path.relative_to(original) for path in (original / part).rglob("*")}
    assert (assets / "speech" / "licences" / "README.txt").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("taken", "a directory that is not empty: give one that is not there yet"),
        ("taken/file", "no directory: give one that is not there yet"),
        ("2nd", "whose name can't be that of a Python package"),
        ("class", "whose name can't be that of a Python package"),
        ("random", "random is the name of another Python package"),
        ("interstack", "interstack is the name of another Python package"),
    ],
)
def test_a_directory_that_will_not_do_is_refused(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, and nothing is written."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert main(["new", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: DIR is {tmp_path / name}, ")
    assert message in error
    assert "\n" not in error
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_directory_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the one that one is in; the name's dashes become the package's underscores."""
    (tmp_path / "Two-Words").mkdir()
    monkeypatch.chdir(tmp_path / "Two-Words")
    assert main(["new", "."]) == 0
    assert Path("two_words/operators.py").is_file()
    assert 'name = "Two-Words"' in Path("pyproject.toml").read_text()
