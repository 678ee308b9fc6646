"""An offline W&B run, read back from the file that is synced later."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2


def offline_records(file: Path) -> Iterator[bytes]:
    """Yield the records of W&B's offline file: LevelDB's log format behind seven bytes of header.

    Blocks of 32 KiB; in them checksum, length and kind of each piece: whole, first, middle, last.
    """
    content, position, pieces = file.read_bytes(), 7, []
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        pieces.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):
            yield b"".join(pieces)
            pieces = []


class Offline:
    """An offline W&B run, read back; of one that was cut and went on the last part.

    Attributes:
        rows: Its history, numbers only by their names, media as what is said of their files.
        defined: Names of the metrics that it defined.
        alerts: Their titles and texts.
        exit_code: With which it ended; None if it has not.
    """

    def __init__(self, directory: Path, part: int = -1) -> None:
        self.directory = sorted(directory.glob("wandb/offline-run-*"))[part]
        self.rows: list[dict[str, Any]] = []
        self.defined: list[str] = []
        self.alerts: list[tuple[str, str]] = []
        self.exit_code: int | None = None
        (file,) = self.directory.glob("*.wandb")
        for data in offline_records(file):
            self._read(data)

    def _read(self, data: bytes) -> None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                name, *inner = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                if inner:
                    row.setdefault(name, {})[".".join(inner)] = value
                else:
                    row[name] = value
            self.rows.append(row)
        elif kind == "metric":
            self.defined.append(record.metric.name)
        elif kind == "alert":
            self.alerts.append((record.alert.title, record.alert.text))
        elif kind == "exit":
            self.exit_code = record.exit.exit_code

    def media(self, name: str) -> list[Path]:
        """Return the files that were logged under a name, in order."""
        return [self.directory / "files" / row[name]["path"] for row in self.rows if name in row]

    def table(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of the last table under a name."""
        content = json.loads(self.media(name)[-1].read_text())
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
