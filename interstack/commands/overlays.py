"""Configuration files that hold no key, as an overlay whose lines are all commented out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import yaml

from interstack.errors import ConfigurationError, first_line

_OPTIONS: Final = ("--config", "-c")


def without_empty_configs(words: Sequence[str]) -> list[str]:
    """Leave out configuration files without a key, which the parser takes for malformed.

    Args:
        words: A command line.

    Raises:
        ConfigurationError: If a configuration file is no YAML, or holds something else than keys.
    """
    kept: list[str] = []
    place = 0
    while place < len(words):
        name, equals, path = words[place].partition("=")
        given = list(words[place : place + 1 if equals or name not in _OPTIONS else place + 2])
        place += len(given)
        if name not in _OPTIONS or not _is_empty(Path(path or given[-1])):
            kept += given
    return kept


def _is_empty(path: Path) -> bool:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"--config {path} can't be read ({first_line(error)}): give another file"
        ) from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(
            f"--config {path} is no YAML ({reason}): correct it there"
        ) from error
    if content is not None and not isinstance(content, dict):
        raise ConfigurationError(
            f"--config {path} holds {first_line(ValueError(str(content)))}, which is no section: "
            "write keys such as growth:"
        )
    return content is None
