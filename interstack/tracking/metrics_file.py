"""``metrics.csv``: one file, also where the run was interrupted and resumed."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from interstack.tracking.events import is_before
from interstack.utils.atomic import append_whole, write_whole
from interstack.utils.disk import is_there, try_or_defer

METRICS_FILE = "metrics.csv"


class MetricsFile(CSVLogger):
    """Lightning's CSV logger, except that a resumed run appends to its earlier file.

    Lightning's restarts the file, rewrites it in place, and ends the run when the disk is full;
    this one keeps the rows and tries again, see `utils.disk`.

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
        """The writer of the file."""
        if not isinstance(self._experiment, _Writer):
            self._experiment = _Writer(self.log_dir)
        return self._experiment


class _Writer(ExperimentWriter):
    """Appends rows to those that are there."""

    metrics: list[dict[str, Any]]

    def _check_log_dir_exists(self) -> None:
        """Read the columns of an earlier file, instead of removing it."""
        path = Path(self.metrics_file_path)
        if is_there(path):
            self.metrics_keys = list(read_rows(path)[0])

    def save(self) -> None:
        """Write the rows since the last time, atomically; they are kept where that fails."""
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
            earlier = read_rows(path)[1] if is_there(path) else []
            write_rows(path, columns, [*earlier, *self.metrics])
        self.metrics_keys = columns
        self.metrics = []


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return a file's columns and rows."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or ()), list(reader)


def write_rows(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Write a file of rows, atomically.

    Raises:
        OSError: If it can't be written.
    """
    write_whole(path, _text(columns, rows, header=True).encode())


def trim_rows(path: Path, step: int, depth: int) -> int:
    """Remove what came after a checkpoint: a run that is resumed from it logs that again.

    Args:
        path: The file.
        step: Optimizer steps of the checkpoint.
        depth: Encoder layers of its student.

    Returns:
        How many rows that were.
    """
    columns, rows = read_rows(path)
    kept = [
        row
        for row in rows
        if row.get("step")
        and is_before(int(row["step"]), float(row.get("growth/depth") or "inf"), step, depth)
    ]
    if len(kept) < len(rows):
        write_rows(path, columns, kept)
    return len(rows) - len(kept)


def _text(columns: list[str], rows: list[dict[str, Any]], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
