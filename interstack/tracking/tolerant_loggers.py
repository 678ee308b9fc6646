"""Loggers that do not end a run where a disk is full or a service out of reach."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from interstack.tracking.wandb import while_service_runs
from interstack.utils.disk import append_or_defer, is_disk_error, reason

log = logging.getLogger(__name__)

_WRITING: Final = (
    *("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint"),
    *("log_table", "log_text", "log_image", "log_audio", "log_video"),
)


def tolerate_failures(logger: Logger) -> None:
    """Turn a logger's failed writes into warnings.

    TensorBoard's events are kept and written later, as the run's own records are. Other loggers
    are called again at the next point, except W&B after its own process has ended.

    Args:
        logger: Of a Trainer on rank zero; changed in place.
    """
    failed = {"now": False}  # shared by its methods, so that one outage is one warning
    for name in _WRITING:
        method = getattr(logger, name, None)
        if method is not None:
            setattr(logger, name, _tolerant(method, logger, failed))
    if isinstance(logger, TensorBoardLogger):
        _defer_events(logger)


def _tolerant(
    method: Callable[..., Any], logger: Logger, failed: dict[str, bool]
) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401, a logger's
        try:
            if isinstance(logger, WandbLogger):
                write = functools.partial(method, *arguments, **named)
                result = while_service_runs(logger, write)
            else:
                result = method(*arguments, **named)
        except OSError as error:
            full = is_disk_error(error)
            if not (full or _is_of_service(error)):
                raise
            if not failed["now"]:
                log.warning(
                    "%s can't write (%s): training continues, and it is called again at the next "
                    "point; %s",
                    type(logger).__name__,
                    reason(error),
                    "free space on its disk" if full else "see that its service can be reached",
                )
            failed["now"] = True
            return None
        failed["now"] = False
        return result

    return call


def _is_of_service(error: OSError) -> bool:
    """Return whether an error is a connection's; those of requests have no number."""
    return isinstance(error, (ConnectionError, TimeoutError)) or error.errno is None


class _EventFile:
    """The file of TensorBoard's record writer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.closed = False

    def write(self, record: bytes) -> None:
        append_or_defer(self._path, record)

    def flush(self) -> None:
        """Do nothing: what could not be written is written with the next record."""

    def close(self) -> None:
        self.closed = True


def _defer_events(logger: TensorBoardLogger) -> None:
    """Put our file below TensorBoard's writer, whose thread a failed write would end for good."""
    writer: Any = getattr(logger.experiment, "file_writer", None)
    events: Any = getattr(writer, "event_writer", None)
    records: Any = getattr(getattr(events, "_async_writer", None), "_writer", None)
    name: Any = getattr(events, "_file_name", None)
    if records is None or name is None or "://" in str(name):
        return  # tensorboardX, or an object store
    logger.experiment.flush()
    records._writer = _EventFile(Path(name))
