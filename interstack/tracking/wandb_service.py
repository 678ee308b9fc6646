"""W&B's process beside the training: it may end, or its disk be full, and the training goes on."""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from weakref import WeakSet

from lightning.pytorch.loggers import WandbLogger

from interstack.errors import first_line

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_stopped: Final[WeakSet[Any]] = WeakSet()
"""Runs whose process has ended."""
_OF_THE_SERVICE: Final = ("wandb.sdk.mailbox", "wandb.sdk.lib.service", "wandb.sdk.interface")
_FILE_HEADER: Final = 7
_BLOCK: Final = 2**15
"""Bytes of a block of LevelDB's log format, in which W&B writes its file."""
_TAIL_BLOCKS: Final = 8
_STEP: Final = "trainer/global_step"
_WHOLE, _LAST = 1, 4


def while_service_runs(logger: WandbLogger, call: Callable[[], _Result]) -> _Result | None:
    """Call W&B; the first time that its process does not answer costs a warning, and later ones 0.

    Args:
        logger: Whose run it is about.
        call: What to do.

    Returns:
        What the call returns; None if the process has ended.
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
            "Weights & Biases' own process has ended (%s): training goes on without it; "
            "metrics.csv and events.jsonl have the whole run, and wandb sync %s sends %s",
            *(first_line(error), directory, read_sync_file(directory).extent),
        )
    return None


def is_lost_service(error: Exception) -> bool:
    """Return whether an error says that W&B's process does not answer."""
    is_of_client = type(error).__module__.startswith(_OF_THE_SERVICE)
    return isinstance(error, ConnectionError) or is_of_client


def forget_service() -> None:
    """End W&B's process, or forget one that has ended, so that another run can begin."""
    import wandb

    with suppress(Exception):  # it forgets the process first, and fails at taking leave of it
        wandb.teardown()
    import_module("wandb.sdk.lib.module").unset_globals()


def has_stopped(run: Any) -> bool:  # noqa: ANN401, W&B's
    """Return whether the process of a run has ended before it."""
    return run in _stopped


class SyncFile(NamedTuple):
    """What W&B's file of a run holds, which ``wandb sync`` sends.

    Attributes:
        steps: Optimizer steps up to the last row; 0: there is none.
        is_complete: Whether it has the run's end.
    """

    steps: int
    is_complete: bool

    @property
    def extent(self) -> str:
        """How much of the run that is, for a message."""
        return f"the run up to step {self.steps}" if self.steps else "nothing of its metrics"


def read_sync_file(directory: Path) -> SyncFile:
    """Look into W&B's file of a run; all of it only where its end is missing.

    A file whose disk was full stays as it was then: W&B writes nothing more into it, also with
    space again, and does not say so.

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
        begin: Of a block.
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
