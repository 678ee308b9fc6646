"""Target caches that runs of a sweep share: one for each teacher, its taps and what it hears."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from interstack.sweep.records import Job
from interstack.target_cache.format import CacheDtype

SHARED_FRONT_END: Final = "shared"
_HEARD: Final = (
    "data.source",
    "data.max_seconds",
    "data.min_seconds",
    "data.crop",
    "data.seed",
    "data.on_corrupt",
)
"""What decides which samples the teacher hears."""


def why_not_cached(settings: Mapping[str, Any]) -> str | None:
    """Return why a run can't use a cache that the sweep makes; None where it can.

    Args:
        settings: Of the run, by dotted names.
    """
    if settings["data.target_cache"] is not None:
        return f"data.target_cache is {settings['data.target_cache']}, which it keeps"
    if settings["data.crop"] == "random" and settings["data.max_seconds"] is not None:
        return (
            "data.crop is random, which gives the teacher other crops each epoch: give "
            "data.crop fixed"
        )
    return None


def cache_name(settings: Mapping[str, Any], dtype: CacheDtype) -> str:
    """Return the name of the cache that a run can use: alike for all that can share it.

    Args:
        settings: Of the run, by dotted names.
        dtype: Number format of the targets.
    """
    heard = {
        name: value
        for name, value in settings.items()
        if name.startswith("model.teacher.") or name.startswith(_HEARD)
    }
    digest = hashlib.sha256(json.dumps(heard, sort_keys=True, default=str).encode())
    return f"targets-{dtype}-{digest.hexdigest()[:8]}"


def cache_job(output: Path, name: str, words: tuple[str, ...], dtype: CacheDtype) -> Job:
    """Return the job that makes a cache.

    Args:
        output: Directory of the sweep.
        name: `cache_name`.
        words: Options of a run that uses it, of one that shares the front end if any does.
        dtype: Number format of the targets.
    """
    directory = output / "caches" / name
    command = ("cache", *words, f"--output={directory}", f"--dtype={dtype}")
    return Job(name, command, directory, {}, {})
