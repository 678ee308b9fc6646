"""The run's metrics as one CSV file, also where the run was cut and taken up again."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from interstack.utils.atomic import append_whole, write_whole
from interstack.utils.disk import is_there, try_or_defer

METRICS_FILE = "metrics.csv"


class MetricsFile(CSVLogger):
    """Lightning's CSV logger, except that it goes on with the file of a run that is resumed.

    Lightning's begins the file anew, rewrites it in place, and ends the run when the disk is full;
    this one keeps the rows and tries again, see `checkpointing.deferred`.

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
            self._experiment = _Writer(self.log_dir)
        return self._experiment


class _Writer(ExperimentWriter):
    """Writes rows behind those that are there."""

    metrics: list[dict[str, Any]]

    def _check_log_dir_exists(self) -> None:
        """Take up the names of an earlier file's columns, instead of removing it."""
        path = Path(self.metrics_file_path)
        if is_there(path):
            self.metrics_keys = list(read_rows(path)[0])

    def save(self) -> None:
        """Write the rows since the last time, all or none; they are kept where that fails."""
        try_or_defer(Path(self.metrics_file_path), self._write_rows)

    def _write_rows(self) -> None:
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        known = self.metrics_keys
        columns = sorted({*known, *(name for row in self.metrics for name in row)})
        if columns == known and is_there(path):
            append_whole(path, _text(columns, self.metrics, header=False).encode())
        else:
            write_rows(path, columns, [*_rows(path), *self.metrics])
        self.metrics_keys = columns
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
    return read_rows(path)[1] if is_there(path) else []


def _text(columns: list[str], rows: list[dict[str, Any]], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
