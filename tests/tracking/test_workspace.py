"""Panels for Weights & Biases, where it can't be reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import wandb
import wandb_workspaces.workspaces as workspaces

from interstack.cli import main
from interstack.tracking.points import AXES, POINT_METRICS

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
    wanted = {*AXES, *POINT_METRICS, "val/loss", "train/loss", "similarity/layers"}
    assert wanted - {"train/stage"} <= found
    assert {"growth/validation_after", "growth/recovered_after_steps"} <= found
    sections = content["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == ["Loss", "Growth", "Optimisation", "Speed"]


def test_with_a_network_it_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is written."""
    sent = []
    monkeypatch.setattr(workspaces.Workspace, "save", lambda self: sent.append(self.name))
    monkeypatch.setattr(workspaces.Workspace, "url", "somewhere")
    path = tmp_path / "workspace.json"
    assert main([*WORDS, "--name", "mine", "--output", str(path)]) == 0
    assert sent == ["mine"]
    assert "the workspace is at somewhere" in capsys.readouterr().out
    assert not path.exists()


def test_a_file_that_can_not_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a line."""
    monkeypatch.setattr(workspaces.Workspace, "save", unreachable)
    assert main([*WORDS, "--output", str(tmp_path)]) == 2
    assert "give --output another file" in capsys.readouterr().err
