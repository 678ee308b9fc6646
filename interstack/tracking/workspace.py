"""A ready workspace for Weights & Biases: the panels that a growing run is watched with."""

from __future__ import annotations

import importlib
import json
from typing import Any

from interstack.errors import ConfigurationError
from interstack.tracking.metrics import AUDIO_HOURS, PETAFLOPS, WALL_CLOCK
from interstack.tracking.step_timer import PARTS

_SPIKE = ("growth/loss_before", "growth/loss_peak")
_STEP = "trainer/global_step"
_LOSS_TAPS = "train/loss_tap_.*"
_LAYERS = "grad_norm/block_.*"


def make_workspace(entity: str, project: str, name: str) -> Any:  # noqa: ANN401, wandb-workspaces'
    """Return the workspace, not sent yet.

    Args:
        entity: User or team.
        project: Of the runs.
        name: What the view is called.

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


def workspace_json(workspace: Any) -> str:  # noqa: ANN401, as above
    """Return what would be sent of a workspace."""
    content = json.loads(workspace._to_model().model_dump_json(by_alias=True))
    return json.dumps(content, indent=1) + "\n"
