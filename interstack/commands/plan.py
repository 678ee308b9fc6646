"""plan: what a run will cost, before it starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console

from interstack.commands.dry_run import describe_run
from interstack.errors import ConfigurationError
from interstack.planning.planner import make_plan
from interstack.planning.report import Plan, print_comparison, print_plan
from interstack.tracking.stage_records import RECORD_NAME
from interstack.utils.console import table_console
from interstack.utils.disk import check_output, write_output


def run_plan(arguments: Sequence[str]) -> None:
    """Parse the command's options, measure, print.

    Args:
        arguments: The words after ``plan``.

    Raises:
        InterstackError: As ``fit`` would.
    """
    run = describe_run("plan", arguments, _add_options, trains=True)
    config = run.config
    if config.seconds <= 0:
        raise ConfigurationError(f"--seconds {config.seconds} must be above 0")
    output = None if config.json is None else Path(config.json)
    if output is not None:
        check_output(output, "--json")
    stages = None if config.against is None else read_stages(Path(config.against))
    run.datamodule.planned_world_size = _world_size(config)
    run.datamodule.prepare_data()
    run.datamodule.setup("fit")
    run.module.setup("fit")
    plan = make_plan(
        run.trainer,
        run.module,
        run.datamodule,
        run.growth,
        world_size=_world_size(config),
        seconds=config.seconds,
    )
    console = table_console()
    print_plan(plan, console)
    if stages is not None:
        _compare(plan, stages, console)
    if output is not None:
        write_output(output, json.dumps(plan.to_primitives(), indent=1).encode(), "--json")


def _add_options(parser: LightningArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=40.0, help="how long to measure")
    parser.add_argument("--json", type=str | None, default=None, help="file for everything")
    parser.add_argument(
        "--against",
        type=str | None,
        default=None,
        help="directory of a finished run, to see how well it would have been predicted",
    )


def read_stages(directory: Path) -> list[Mapping[str, Any]]:
    """Read what a run's stages took.

    Raises:
        ConfigurationError: If there is no record of a run, or it can't be read.
    """
    path = directory / RECORD_NAME
    try:
        stages: list[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"--against {directory}: there is no readable {RECORD_NAME} ({error}); give the "
            "directory of a run"
        ) from error
    return stages


def _compare(plan: Plan, stages: Sequence[Mapping[str, Any]], console: Console) -> None:
    planned = [(stage.depth, stage.steps) for stage in plan.prediction.stages]
    real = [(stage["depth"], stage["steps"]) for stage in stages]
    if planned != real:
        raise ConfigurationError(
            f"--against names a run of stages (depth, steps) {real}, but the plan has {planned}: "
            "give the configuration that it ran with"
        )
    print_comparison(plan.prediction, stages, console)


def _world_size(config: Namespace) -> int:
    """Return the ranks that the run will have.

    Raises:
        ConfigurationError: If these can't be counted, or are none.
    """
    devices = config.trainer.devices
    if isinstance(devices, list):
        number = len(devices)
    elif isinstance(devices, str) and "," in devices:
        number = len([part for part in devices.split(",") if part])
    elif str(devices) in ("auto", "-1"):
        number = max(1, torch.cuda.device_count())
    else:
        number = int(devices) if str(devices).isdecimal() else 0
    for name, value in (("devices", number), ("num_nodes", int(config.trainer.num_nodes))):
        if value < 1:
            raise ConfigurationError(
                f"trainer.{name} is {config.trainer[name]}: give a number of 1 or more"
                f"{', or auto' if name == 'devices' else ''}"
            )
    return number * int(config.trainer.num_nodes)
