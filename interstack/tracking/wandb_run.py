"""A W&B run from its beginning to its end; an outage of the service does not stop the training."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from interstack.errors import ConfigurationError, RunInterrupted, first_line
from interstack.tracking.wandb_service import (
    forget_service,
    has_stopped,
    is_lost_service,
    read_sync_file,
)

log = logging.getLogger(__name__)

_INIT_SECONDS: Final = 20.0
_FINISH_SECONDS: Final = 60.0
"""Less than a SLURM job has between its warning and its end."""
_REFUSAL: Final = re.compile(r"returned error 4(?!08|29)\d\d|: input: ")
"""W&B's own answer to a request that it will not serve: HTTP 4xx, but a time-out or too many
requests, or an error of GraphQL."""


@dataclass(frozen=True)
class Tracking:
    """What loggers may do to a run.

    Attributes:
        wandb_outage: What a run does if Weights & Biases can't be reached when it begins or is
            resumed. ``offline``: it is logged into its directory, for ``wandb sync`` to send later.
            ``stop``: it ends with an error.
    """

    wandb_outage: Literal["offline", "stop"] = "offline"


def begin_wandb(loggers: Iterable[Logger], outage: Literal["offline", "stop"]) -> None:
    """Begin the W&B run of each W&B logger, offline where the service can't be reached.

    Only rank zero logs. ``WANDB_INIT_TIMEOUT`` and ``WANDB_FINISH_TIMEOUT`` set other limits, in
    seconds, than the 20 s of the first contact and the 60 s of the last upload.

    Args:
        loggers: The Trainer's.
        outage: `Tracking.wandb_outage`.

    Raises:
        ConfigurationError: If the service can't be reached and the run is to stop then.
        wandb.Error: If W&B has no key, or refuses the one it has or the project.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _begin(logger, outage)


@rank_zero_only
def _begin(logger: WandbLogger, outage: Literal["offline", "stop"]) -> None:
    import wandb

    arguments = logger._wandb_init
    if arguments.get("anonymous") is None:  # W&B warns of it even so
        arguments.pop("anonymous", None)
    limits = _limits(logger)
    given = arguments.get("settings") or {}
    if isinstance(given, wandb.Settings):
        given = {name: getattr(given, name) for name in given.model_fields_set}
    arguments["settings"] = wandb.Settings(**{**limits, **given})
    before = set(_directories(logger))
    try:
        run = logger.experiment
    except (wandb.errors.CommError, TimeoutError) as error:
        refused = isinstance(error, wandb.errors.AuthenticationError)
        if refused or _REFUSAL.search(str(error)):
            raise
        reason = first_line(error)
        if outage == "stop":
            raise ConfigurationError(
                f"Weights & Biases can't be reached ({reason}) and tracking.wandb_outage is stop: "
                "restore the connection, or give tracking.wandb_outage offline"
            ) from error
    else:
        if limits.get("silent") and run.url:
            log.info("W&B: %s", run.url)
        return
    wandb.teardown()  # the client holds the id until then
    for empty in set(_directories(logger)) - before:
        shutil.rmtree(empty, ignore_errors=True)
    arguments["mode"] = "offline"
    run = logger.experiment
    log.warning(
        "Weights & Biases can't be reached (%s): the run is logged offline under its id %s; wandb "
        "sync %s sends it when the run has ended",
        *(reason, run.id, Path(run.dir).parent),
    )


def _limits(logger: WandbLogger) -> dict[str, Any]:
    """Return W&B's settings that keep a run from waiting, but those in the environment."""
    limits: dict[str, Any] = {"init_timeout": _INIT_SECONDS}
    if not logger._log_model:  # checkpoints may take any time to be sent
        limits |= {"finish_timeout": _FINISH_SECONDS, "finish_timeout_raises": True}
    if not sys.stderr.isatty() and os.environ.get("WANDB_QUIET") != "false":
        limits["silent"] = True  # its service writes colour codes even into files
    return {
        name: value for name, value in limits.items() if f"WANDB_{name.upper()}" not in os.environ
    }


def _directories(logger: WandbLogger) -> list[Path]:
    """Return the directories of online runs."""
    return list(Path(logger._wandb_init["dir"] or ".", "wandb").glob("run-*"))


@contextmanager
def finished_wandb() -> Iterator[None]:
    """End the W&B run that is begun meanwhile, as failed if it fails; log how to sync it.

    W&B would do so when the process ends, but into files in colours as well, and behind the last
    value of every metric; ``WANDB_QUIET=false`` brings these back.

    Raises:
        ConfigurationError: If W&B knows no account, or refuses the run.
    """
    os.environ.setdefault("WANDB_QUIET", "true")
    earlier = _wandb_run()
    exit_code = 1
    try:
        yield
        exit_code = 0
    except RunInterrupted as stop:
        exit_code = stop.exit_status
        raise
    except Exception as error:
        if type(error).__module__.startswith("wandb."):
            raise ConfigurationError(
                f"Weights & Biases: {first_line(error)}: correct that, or give its logger offline: "
                "true and send the run later"
            ) from error
        raise
    finally:
        run = _wandb_run()
        if run is not None and run is not earlier:
            _finish(run, exit_code, is_alone=earlier is None)


def _finish(run: Any, exit_code: int, *, is_alone: bool) -> None:  # noqa: ANN401, W&B's
    directory = Path(run.dir).parent
    if has_stopped(run):
        forget_service()
        return
    try:
        run.finish(exit_code)
    except Exception as error:  # the client's own are of many kinds; what was trained is saved
        log.warning(
            "Weights & Biases lacks the end of the run (%s): wandb sync %s sends it",
            *(first_line(error), directory),
        )
        if is_lost_service(error) and is_alone:
            forget_service()
        return
    if not run.offline:
        return
    if is_alone:
        forget_service()  # it has written its file to the end then
    found = read_sync_file(directory)
    if found.is_complete or not is_alone:
        log.info("W&B was offline: wandb sync %s sends the run", directory)
    else:
        log.warning(
            "Weights & Biases' file of the run is incomplete, as a full disk leaves it: wandb sync "
            "%s sends %s; metrics.csv and events.jsonl have the whole run",
            *(directory, found.extent),
        )


def _wandb_run() -> Any:  # noqa: ANN401, W&B's
    """Return the run that is going on in this process; nothing is imported for that."""
    return getattr(sys.modules.get("wandb"), "run", None)
