"""workspace: panels for Weights & Biases, sent, or written where nobody can be reached."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from interstack.errors import ConfigurationError, first_line
from interstack.tracking.workspace import make_workspace, workspace_json
from interstack.utils.disk import write_output


def run_workspace(arguments: Sequence[str]) -> None:
    """Parse the command's options and lay the panels out.

    Args:
        arguments: The words after ``workspace``.

    Raises:
        ConfigurationError: If W&B refuses the workspace.
        InterstackError: If the file can't be written.
    """
    parser = argparse.ArgumentParser(
        prog="interstack workspace",
        description="Lay out the panels of a growing run in Weights & Biases.",
    )
    parser.add_argument("--entity", required=True, help="user or team")
    parser.add_argument("--project", required=True, help="project of the runs")
    parser.add_argument("--name", default="interstack", help="name of the view")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("workspace.json"),
        help="where it goes if it can't be sent (default workspace.json)",
    )
    options = parser.parse_args(arguments)
    import wandb

    workspace = make_workspace(options.entity, options.project, options.name)
    try:
        workspace.save()
    except Exception as error:  # the client's own are of many kinds, most of them private
        reason = first_line(error)
        is_reached = not isinstance(error, (wandb.errors.Error, OSError))
    else:
        print(f"the workspace is at {workspace.url}")
        return
    write_output(options.output, workspace_json(workspace).encode(), "--output")
    if is_reached:
        raise ConfigurationError(
            f"Weights & Biases refuses the workspace ({reason}): check --entity {options.entity} "
            f"and --project {options.project}; what was sent is in {options.output}"
        )
    print(
        f"Weights & Biases can't be reached ({reason}): what would be sent is in {options.output}; "
        "give the same command where it can"
    )
