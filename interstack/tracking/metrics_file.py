"""The run's metrics as one CSV file, also where the run was cut and taken up again."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from interstack.checkpointing.atomic import write_whole

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.csv"


class MetricsFile(CSVLogger):
    """Lightning's CSV logger, except that it goes on with the file of a run that is resumed.

    Lightning's begins the file anew, rewrites it in place, and ends the run when the disk is full;
    this one keeps the rows and tries again.

    Args:
        save_dir: Directory of ``metrics.csv``; ``.`` is the run's own.
        flush_logs_every_n_steps: Rows between two writes; each checkpoint writes as well.
    """

    def __init__(self, save_dir: str = ".", flush_logs_every_n_steps: int = 100) -> None:
        super().__init__(
            save_dir, name="", version="", flush_logs_every_n_steps=flush_logs_every_n_steps
        )

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What writes the file."""
        if not isinstance(self._experiment, _Writer):
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _Writer(self.log_dir)
        return self._experiment


class _Writer(ExperimentWriter):
    """Writes rows behind those that are there."""

    metrics: list[dict[str, Any]]

    def _check_log_dir_exists(self) -> None:
        """Take up the names of an earlier file's columns, instead of removing it."""
        path = Path(self.metrics_file_path)
        if path.exists():
            self.metrics_keys = list(read_rows(path)[0])

    def save(self) -> None:
        """Write the rows since the last time, all or none."""
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        known = set(self.metrics_keys)
        self._record_new_keys()
        try:
            if path.exists() and known == set(self.metrics_keys):
                _append(path, _text(self.metrics_keys, self.metrics, header=False))
            else:
                write_rows(path, self.metrics_keys, [*_rows(path), *self.metrics])
        except OSError as error:
            self.metrics_keys = sorted(known)
            log.warning("%s can't be written (%s); its rows are kept for later", path, error)
            return
        self.metrics = []


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return a file's columns and rows."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or ()), list(reader)


def write_rows(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Write a file of rows, whole or not at all.

    Raises:
        OSError: If it can't be written.
    """
    write_whole(path, _text(columns, rows, header=True).encode())


def trim_rows(path: Path, step: int, depth: int) -> int:
    """Leave out what came after a checkpoint: a run that goes on from there logs it again.

    Args:
        path: The file.
        step: Optimizer steps that the checkpoint's run had done, so the index of the next one.
        depth: Layers that its student had. A growth has the index of the step that it comes before,
            and the checkpoint may have been written before it or after it.

    Returns:
        How many rows that were.
    """
    columns, rows = read_rows(path)
    kept = [row for row in rows if _came_before(row, step, depth)]
    if len(kept) < len(rows):
        write_rows(path, columns, kept)
    return len(rows) - len(kept)


def _came_before(row: dict[str, str], step: int, depth: int) -> bool:
    if not row.get("step"):
        return False
    grown_to = row.get("growth/depth")
    return int(row["step"]) < step + bool(grown_to and float(grown_to) <= depth)


def _rows(path: Path) -> list[dict[str, str]]:
    return read_rows(path)[1] if path.exists() else []


def _text(columns: list[str], rows: list[dict[str, Any]], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _append(path: Path, text: str) -> None:
    """Append all or nothing."""
    size = path.stat().st_size
    try:
        with path.open("ab") as file:
            file.write(text.encode())
    except OSError:
        with path.open("rb+") as file:
            file.truncate(size)
        raise
