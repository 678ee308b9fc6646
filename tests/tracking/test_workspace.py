"""Panels for Weights & Biases, where it can't be reached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import wandb
import wandb_workspaces.workspaces as workspaces

from interstack.cli import main
from interstack.tracking.events import GROWTH_METRICS
from interstack.tracking.metrics import AXES, POINT_METRICS

WORDS = ["workspace", "--entity", "somebody", "--project", "growing"]


def strings(content: Any) -> set[str]:  # noqa: ANN401 - JSON
    """Return every string in nested content."""
    if isinstance(content, dict):
        return {each for value in content.values() for each in strings(value)}
    if isinstance(content, list):
        return {each for value in content for each in strings(value)}
    return {content} if isinstance(content, str) else set()


def unreachable(self: workspaces.Workspace) -> None:
    """Fail as without an account."""
    del self
    raise wandb.errors.UsageError("No API key configured.")


def test_without_a_network_it_writes_what_it_would_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With every metric that a run logs, and every axis."""
    monkeypatch.setattr(workspaces.Workspace, "save", unreachable)
    path = tmp_path / "workspace.json"
    assert main([*WORDS, "--output", str(path)]) == 0
    assert "No API key configured" in capsys.readouterr().out
    content = json.loads(path.read_text())
    assert (content["entity"], content["project"]) == ("somebody", "growing")
    found = strings(content)
    wanted = {
        *AXES,
        *POINT_METRICS,
        "val/loss",
        "train/loss",
        "similarity/layers",
        "stages/summary",
    }
    assert wanted - {"train/stage"} <= found
    assert set(GROWTH_METRICS) - {"growth/depth"} <= found
    assert {"grad_norm/block_.*", "train/loss_tap_.*"} <= found
    sections = content["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == ["Loss", "Growth", "Optimisation", "Speed"]


class Weights(BaseHTTPRequestHandler):
    """Stands for W&B's server: knows one user, and takes workspaces of one project."""

    taken: list[dict[str, Any]]

    def do_POST(self) -> None:
        """Answer a query of its interface, and anything else as if it were nothing."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(self._reply(content) if self.path == "/graphql" else {})

    def _reply(self, content: bytes) -> dict[str, Any]:
        try:
            asked = json.loads(content)
        except ValueError:
            return {}
        if "upsertView" not in asked["query"]:
            return {"data": {"viewer": {"id": "1", "entity": "somebody", "username": "somebody"}}}
        if asked["variables"]["projectName"] != "growing":
            return {"errors": [{"message": "there is no such project"}]}
        self.taken.append(asked["variables"])
        view = {"id": "1", "name": asked["variables"]["name"]}
        return {"data": {"upsertView": {"view": view, "inserted": True}}}

    def _answer(self, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    """Such a server on this machine."""
    Weights.taken = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Weights) as serving:
        thread = Thread(target=serving.serve_forever)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def send(server: ThreadingHTTPServer, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process that only knows this server, and a key."""
    surroundings = os.environ | {
        "HOME": str(home),
        "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}",
        "WANDB_API_KEY": "a" * 40,
    }
    command = [sys.executable, "-m", "interstack.cli", *words]
    return subprocess.run(command, env=surroundings, capture_output=True, text=True, cwd=home)


def test_with_a_network_it_is_sent(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    """By W&B's own client; the server gets what would else be written, and no file is."""
    done = send(server, tmp_path, *WORDS, "--name", "mine")
    assert done.returncode == 0, done.stderr
    (view,) = Weights.taken
    assert (view["entityName"], view["projectName"]) == ("somebody", "growing")
    assert view["displayName"] == "mine"
    assert {"similarity/layers", *AXES} <= strings(json.loads(view["spec"]))
    assert f"the workspace is at http://127.0.0.1:{server.server_port}/somebody/" in done.stdout
    assert not (tmp_path / "workspace.json").exists()


def test_a_refusal_is_one_line(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    """With its reason and the mend; what was sent can be looked at."""
    words = [word if word != "growing" else "another" for word in WORDS]
    done = send(server, tmp_path, *words)
    assert done.returncode == 2
    assert "there is no such project): check --entity somebody and --project another" in done.stderr
    assert "Traceback" not in done.stderr
    assert Weights.taken == []
    assert (tmp_path / "workspace.json").exists()


def test_a_file_that_can_not_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a line."""
    monkeypatch.setattr(workspaces.Workspace, "save", unreachable)
    assert main([*WORDS, "--output", str(tmp_path)]) == 2
    assert "give --output another file" in capsys.readouterr().err


def test_the_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The package serves this one command."""
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert main(WORDS) == 2
    assert "install interstack[workspace]" in capsys.readouterr().err
