"""workspace: panels of a growing run in Weights & Biases, sent, or written to a file."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from interstack.errors import ConfigurationError, first_line
from interstack.tracking.metrics import AUDIO_HOURS, PETAFLOPS, WALL_CLOCK
from interstack.tracking.step_timer import PARTS
from interstack.utils.disk import write_output

_SPIKE: Final = ("growth/loss_before", "growth/loss_peak")
_STEP: Final = "trainer/global_step"
_LOSS_TAPS: Final = "train/loss_tap_.*"
_LAYERS: Final = "grad_norm/block_.*"


def run_workspace(arguments: Sequence[str]) -> None:
    """Parse the command's options, and send the panels, or write them to a file.

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
        help="file for it if it can't be sent (default workspace.json)",
    )
    options = parser.parse_args(arguments)
    import wandb

    workspace = _make_workspace(options.entity, options.project, options.name)
    try:
        workspace.save()
    except Exception as error:  # the client's own are of many kinds, most of them private
        reason = first_line(error)
        is_reached = not isinstance(error, (wandb.errors.Error, OSError))
    else:
        print(f"the workspace is at {workspace.url}")
        return
    content = json.loads(workspace._to_model().model_dump_json(by_alias=True))
    text = json.dumps(content, indent=1) + "\n"
    write_output(options.output, text.encode(), "--output")
    if is_reached:
        raise ConfigurationError(
            f"Weights & Biases refuses the workspace ({reason}): check --entity {options.entity} "
            f"and --project {options.project}; what was sent is in {options.output}"
        )
    print(
        f"Weights & Biases can't be reached ({reason}): what would be sent is in {options.output}; "
        "give the same command where it can"
    )


def _make_workspace(entity: str, project: str, name: str) -> Any:  # noqa: ANN401, wandb-workspaces'
    """Return the workspace, which is not sent yet.

    Raises:
        ConfigurationError: If the package for it is not installed.
    """
    try:
        panels, workspaces = (
            importlib.import_module(f"wandb_workspaces.{module}")
            for module in ("reports.v2", "workspaces")
        )
    except ImportError as error:
        raise ConfigurationError(
            "a workspace needs the package wandb-workspaces: install interstack[workspace]"
        ) from error

    def line(title: str, *metrics: str, x: str = _STEP) -> Any:  # noqa: ANN401, as above
        return panels.LinePlot(title=title, x=x, y=list(metrics))

    sections = {
        "Loss": [
            line("validation loss, by steps", "val/loss"),
            line("validation loss, by hours of audio", "val/loss", x=AUDIO_HOURS),
            line("validation loss, by wall-clock", "val/loss", x=WALL_CLOCK),
            line("validation loss, by training compute", "val/loss", x=PETAFLOPS),
            line("training loss", "train/loss"),
            panels.LinePlot(title="training loss by tap", x=_STEP, metric_regex=_LOSS_TAPS),
        ],
        "Growth": [
            line("depth", "train/depth"),
            line(
                "validation loss before and after",
                "growth/validation_before",
                "growth/validation_after",
            ),
            line("training loss before growth and at its peak", *_SPIKE),
            line("steps until the training loss was back", "growth/recovered_after_steps"),
            panels.MediaBrowser(media_keys=["similarity/layers"]),
            panels.WeavePanelSummaryTable(table_name="stages/summary"),
        ],
        "Optimisation": [
            line("learning rate", "train/learning_rate"),
            line("gradient norm", "train/grad_norm"),
            panels.LinePlot(
                title="gradient norm by layer, block and place", x=_STEP, metric_regex=_LAYERS
            ),
        ],
        "Speed": [
            line("seconds of audio a second", "speed/audio_seconds_per_second"),
            line("where a step's time goes", *(f"split/{part}" for part in PARTS)),
            line("seconds a step", "speed/step_seconds"),
            line("memory, MiB at most", "memory/peak_mebibytes"),
            line("padding", "data/padding"),
        ],
    }
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            workspaces.Section(name=title, panels=content, is_open=True)
            for title, content in sections.items()
        ],
    )
