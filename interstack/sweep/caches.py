"""Target caches that runs of a sweep share: one for each teacher, its taps and its audio."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from interstack.sweep.records import Job
from interstack.target_cache.format import CacheDtype

SHARED_FRONT_END: Final = "shared"
_AUDIO: Final = (
    "data.source",
    "data.max_seconds",
    "data.min_seconds",
    "data.crop",
    "data.seed",
    "data.on_corrupt",
)
"""Settings that decide which samples the teacher reads."""


def why_not_cached(settings: Mapping[str, Any]) -> str | None:
    """Return why a run can't use a cache of the sweep; None where it can.

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
    """Return the name of the cache for a run, the same for all runs that can share it.

    Args:
        settings: Of the run, by dotted names.
        dtype: Number format of the targets.
    """
    shared = {
        name: value
        for name, value in settings.items()
        if name.startswith("model.teacher.") or name.startswith(_AUDIO)
    }
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True, default=str).encode())
    return f"targets-{dtype}-{digest.hexdigest()[:8]}"


def cache_job(output: Path, name: str, words: tuple[str, ...], dtype: CacheDtype) -> Job:
    """Return the job that fills a cache.

    Args:
        output: Directory of the sweep.
        name: `cache_name`.
        words: Options of a run that uses it, of one that shares the front end if any does.
        dtype: Number format of the targets.
    """
    directory = output / "caches" / name
    command = ("cache", *words, f"--output={directory}", f"--dtype={dtype}")
    return Job(name, command, directory, {}, {})
