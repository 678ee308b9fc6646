"""The W&B run of a training, which continues without it: offline, or after its process ends."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar
from weakref import WeakSet

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from interstack.errors import ConfigurationError, RunInterrupted, first_line

log = logging.getLogger(__name__)

_INIT_SECONDS: Final = 20.0
_FINISH_SECONDS: Final = 60.0
"""Less than a SLURM job has between its warning and its end."""
_REFUSAL: Final = re.compile(r"returned error 4(?!08|29)\d\d|: input: ")
"""W&B's own answer to a request that it refuses: HTTP 4xx except a time-out or too many requests,
or an error of GraphQL."""


@dataclass(frozen=True)
class Tracking:
    """How loggers may affect a run.

    Attributes:
        wandb_outage: If Weights & Biases can't be reached when a run starts or is resumed.
            ``offline``: it is logged into its directory, for ``wandb sync`` to send later.
            ``stop``: it ends with an error.
    """

    wandb_outage: Literal["offline", "stop"] = "offline"


def start_wandb(loggers: Iterable[Logger], outage: Literal["offline", "stop"]) -> None:
    """Start the W&B run of each W&B logger, offline where the service can't be reached.

    Only rank zero logs. ``WANDB_INIT_TIMEOUT`` and ``WANDB_FINISH_TIMEOUT`` set other limits, in
    seconds, than the 20 s of the first contact and the 60 s of the last upload.

    Args:
        loggers: The Trainer's.
        outage: `Tracking.wandb_outage`.

    Raises:
        ConfigurationError: If the service can't be reached and ``outage`` is ``stop``.
        wandb.Error: If W&B has no key, or refuses the one it has or the project.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _start(logger, outage)


@rank_zero_only
def _start(logger: WandbLogger, outage: Literal["offline", "stop"]) -> None:
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
    """Return W&B's settings that keep a run from waiting, without those in the environment."""
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
    """End the W&B run that is started in this context, as failed if it fails; log how to sync it.

    W&B would do so when the process ends, but with colour codes in files, and after the last
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
    """Return the present run of this process; nothing is imported for that."""
    return getattr(sys.modules.get("wandb"), "run", None)


_Result = TypeVar("_Result")

_stopped: Final[WeakSet[Any]] = WeakSet()
"""Runs whose process has ended."""
_OF_THE_SERVICE: Final = ("wandb.sdk.mailbox", "wandb.sdk.lib.service", "wandb.sdk.interface")


def while_service_runs(logger: WandbLogger, call: Callable[[], _Result]) -> _Result | None:
    """Call W&B, unless its process has ended; log a warning when that happens.

    Args:
        logger: The logger of the run.
        call: Calls W&B.

    Returns:
        The call's result; None if the process has ended.
    """
    run = logger.experiment
    if run in _stopped:
        return None
    try:
        return call()
    except Exception as error:
        if not isinstance(error, TimeoutError) and not is_lost_service(error):
            raise
        _stopped.add(run)
        with suppress(Exception):  # it copies what is printed to its process
            run._restore()
        directory = Path(run.dir).parent
        log.warning(
            "Weights & Biases' own process has ended (%s): training continues without it; "
            "metrics.csv and events.jsonl have the whole run, and wandb sync %s sends %s",
            *(first_line(error), directory, read_sync_file(directory).extent),
        )
    return None


def is_lost_service(error: Exception) -> bool:
    """Return whether an error means that W&B's process does not answer."""
    is_of_client = type(error).__module__.startswith(_OF_THE_SERVICE)
    return isinstance(error, ConnectionError) or is_of_client


def forget_service() -> None:
    """End W&B's process, or forget one that has ended, so that another run can start."""
    import wandb

    with suppress(Exception):  # it forgets the process first, and fails to close the connection
        wandb.teardown()
    import_module("wandb.sdk.lib.module").unset_globals()


def has_stopped(run: Any) -> bool:  # noqa: ANN401, W&B's
    """Return whether the process of a run has ended before it."""
    return run in _stopped


_FILE_HEADER: Final = 7
_BLOCK: Final = 2**15
"""Bytes of a block of LevelDB's log format, in which W&B writes its file."""
_TAIL_BLOCKS: Final = 8
_STEP: Final = "trainer/global_step"
_WHOLE, _LAST = 1, 4


class SyncFile(NamedTuple):
    """The content of W&B's file of a run, which ``wandb sync`` sends.

    Attributes:
        steps: Optimizer steps up to the last row; 0 without a row.
        is_complete: Whether it has the run's end.
    """

    steps: int
    is_complete: bool

    @property
    def extent(self) -> str:
        """The part of the run that it holds, for a message."""
        return f"the run up to step {self.steps}" if self.steps else "nothing of its metrics"


def read_sync_file(directory: Path) -> SyncFile:
    """Return the content of W&B's file of a run; all of it is read only where its end is missing.

    A file whose disk was full stays as it was then: W&B writes nothing more into it, also with
    space again, and does not report that.

    Args:
        directory: Of the run, as ``wandb sync`` takes it.
    """
    try:
        (file,) = directory.glob("*.wandb")
        content = file.read_bytes()
    except (OSError, ValueError):
        return SyncFile(0, is_complete=False)
    begin = max(0, len(content) // _BLOCK - _TAIL_BLOCKS) * _BLOCK
    if any(kind == "exit" for kind, _ in _records(content, begin)):
        return SyncFile(0, is_complete=True)
    rows = [record.history for kind, record in _records(content) if kind == "history"]
    steps = 0
    for row in reversed(rows):
        found = [
            item.value_json for item in row.item if _STEP in (item.key, "/".join(item.nested_key))
        ]
        if found:
            steps = int(json.loads(found[0])) + 1
            break
    return SyncFile(steps, is_complete=False)


def _records(content: bytes, begin: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the kinds and contents of the records that are complete.

    A block holds pieces of records, each behind its checksum, length and kind: whole, first,
    middle, last.

    Args:
        content: Of the file.
        begin: Offset of the first block to read.
    """
    new_record: Any = import_module("wandb.proto.wandb_internal_pb2").Record
    position, pieces = max(begin, _FILE_HEADER), list[bytes]()
    while position + 7 <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        if position + 7 + length > len(content):
            return
        pieces.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (_WHOLE, _LAST):
            record = new_record()
            try:
                record.ParseFromString(b"".join(pieces))
            except Exception as error:
                # of protobuf, which comes with wandb; a block's first piece may belong to a record
                # before it
                if type(error).__name__ != "DecodeError":
                    raise
            else:
                yield str(record.WhichOneof("record_type")), record
            pieces = []
