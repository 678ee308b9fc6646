"""`export --push-to-hub`, by huggingface_hub's own client, against a stand-in of its server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from interstack.cli import main
from tests.export.hub_stand_in import TOKEN, HubStandIn

# huggingface_hub uploads large files in a way that httpx has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandIn]:
    """A hub on which the user is logged in."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubStandIn() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def push(run: Path, output: Path, name: str, *more: str) -> int:
    """Export a run's student and upload it."""
    words = [f"--checkpoint={run}", f"--output={output}", f"--push-to-hub={name}"]
    return main(["export", *words, *more])


@pytest.mark.parametrize("private", [False, True])
def test_the_hub_has_the_directory_with_its_card(
    private: bool,
    hub: HubStandIn,
    grown_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every file as it was written, in a repository of the required kind."""
    output = tmp_path / "student"
    assert push(grown_run, output, "someone/student", *["--private"] * private) == 0
    assert hub.repositories == {"someone/student": private}
    written = {path.name: path.read_bytes() for path in output.iterdir()}
    assert {"README.md", "config.json", "model.safetensors"} <= set(written)
    assert {name: hub.files[name] for name in written} == written
    assert f"{hub.address}/someone/student" in capsys.readouterr().out


def test_what_the_hub_refuses_is_one_line(
    hub: HubStandIn,
    grown_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before anything is exported, but for what only the upload tells."""
    hub.repositories["someone/public"] = False
    output = tmp_path / "student"
    for name, more, message in [
        ("student", [], "give OWNER/NAME"),
        ("someone/public", ["--private"], "exists and is public"),
        ("someone/with space", [], "the hub does not allow"),
    ]:
        assert push(grown_run, output, name, *more) == 2
        assert message in capsys.readouterr().err
        assert not output.exists()
    assert push(grown_run, output, "somebody/student") == 2
    error = capsys.readouterr().err
    assert "the hub answers 403" in error
    assert f"(the export is in {output})" in error
    assert (output / "model.safetensors").is_file()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert push(grown_run, tmp_path / "other", "someone/student") == 2
    assert "the hub answers 401" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    assert push(grown_run, tmp_path / "other", "someone/student") == 2
    assert "there is no token: log in with `hf auth login`" in capsys.readouterr().err
    assert main(["export", f"--checkpoint={grown_run}", "--output=x", "--private"]) == 2
    assert "--private is true, which has no effect without --push-to-hub" in (
        capsys.readouterr().err
    )


def test_without_a_network_it_is_said_before_anything_is_exported(
    hub: HubStandIn,
    grown_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line with the fix."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert push(grown_run, tmp_path / "student", "someone/student") == 2
    error = capsys.readouterr().err
    assert "http://127.0.0.1:9 can't be reached" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "student").exists()
    assert not hub.files
