"""What a template is liked for beside its code: shell completion, and a workflow for GitHub."""

from __future__ import annotations

import os
import tomllib
from typing import Any

import pytest
import yaml

from interstack.cli import main
from interstack.commands import COMMANDS, completion
from tests import REPOSITORY


def test_completion_knows_every_command_and_the_options_of_fit() -> None:
    """Without the strategies' own options, which would be tens of megabytes of script."""
    purposes = {name: purpose for name, (_, purpose) in COMMANDS.items()}
    parser = completion.completion_parser(purposes)
    subcommands: Any = parser._subcommands_action
    assert set(subcommands.choices) == set(COMMANDS)
    fit = {
        option: action
        for action in subcommands.choices["fit"]._actions
        for option in action.option_strings
    }
    assert {"--growth.operator", "--model.objective.kind", "--ckpt_path"} <= set(fit)
    assert fit["--trainer.strategy"]._typehint is str


def test_completion_without_shtab_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is an extra."""
    monkeypatch.setattr(completion, "find_spec", lambda _: None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'interstack[completion]'" in capsys.readouterr().err


def test_the_workflow_runs_what_continuous_integration_runs() -> None:
    """With the oldest Python that is supported."""
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["suite"]["steps"]
    assert steps[-1] == {"run": ".ci/run"}
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={steps[1]['with']['python-version']}"
