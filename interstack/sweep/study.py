"""A study: the arms that are compared, their seeds and values, and the runs of them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, get_args

from interstack.errors import ConfigurationError
from interstack.target_cache.format import CacheDtype

_KEYS: Final = ("config", "arms", "seeds", "values", "settings", "cache", "baseline")
_NAME: Final = re.compile(r"[\w.+-]+")
_SET_BY_SWEEP: Final = {
    "seed_everything": "give seeds",
    "trainer.default_root_dir": "give --output",
    "ckpt_path": "leave it out, every run is resumed by itself",
    "config": "give an overlay's file",
}
_CLASS: Final = "class_path"

Settings = Mapping[str, Any]
"""Values by dotted names."""


@dataclass(frozen=True)
class Arm:
    """One of the recipes that are compared.

    Attributes:
        name: In tables and directories.
        words: Its part of `fit`'s command line: overlays and settings, in order.
    """

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class PlannedRun:
    """One run of `fit`.

    Attributes:
        name: Of its directory.
        group: Arm and values: runs that share it differ by their seeds alone.
        arm: Its arm.
        seed: ``seed_everything``.
        words: Options of `fit`, without directory, checkpoint and cache.
    """

    name: str
    group: str
    arm: str
    seed: int
    words: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A comparison of recipes.

    Attributes:
        config: Configuration files of all runs, before their overlays.
        arms: The recipes that are compared.
        seeds: Of every arm.
        values: A grid over which every arm is run, by dotted names.
        settings: Of all runs, between the configuration files and the arm.
        cache: Number format of cached targets; None: every run has its teacher.
        baseline: Arm that the others are tested against; may be None.
    """

    config: tuple[str, ...]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    values: Mapping[str, Sequence[Any]]
    settings: Settings
    cache: CacheDtype | None
    baseline: str | None

    @classmethod
    def from_primitives(cls, content: object, origin: str) -> Self:
        """Check the content of a study file.

        Args:
            content: A mapping with ``config`` (a file or a list), ``arms`` (by name a file, a
                mapping of settings, or a list of both), ``seeds`` (a list), and optionally
                ``values`` (lists by dotted names), ``settings``, ``cache`` (true or a number
                format) and ``baseline``.
            origin: Its name in messages, the file or ``--option``.

        Raises:
            ConfigurationError: With one line for each mistake.

        Example:
            >>> study = Study.from_primitives(
            ...     {
            ...         "config": "configs/interleaved.yaml",
            ...         "arms": {"plain": [], "hot": {"model.optimizer.learning_rate": 2e-3}},
            ...         "seeds": [1],
            ...     },
            ...     "study.yaml",
            ... )
            >>> [run.name for run in study.runs()]
            ['plain-seed1', 'hot-seed1']
        """
        if not isinstance(content, Mapping):
            raise ConfigurationError(
                f"{origin} is no mapping: write the keys {', '.join(_KEYS)} there"
            )
        check = _Check(origin)
        for key in content:
            if key not in _KEYS:
                check.add(f"{key} is unknown: give {', '.join(_KEYS)}")
        config = check.files("config", content.get("config"))
        if not config:
            check.add("config is missing: name the configuration file that all runs begin with")
        arms = check.arms(content.get("arms", {"base": []}))
        names = [arm.name for arm in arms]
        settings = check.settings("settings", content.get("settings") or {})
        seeds = check.seeds(content.get("seeds"))
        values = check.values(content.get("values") or {})
        cache: Any = content.get("cache") or None
        cache = "float16" if cache is True else cache
        if cache not in (None, *get_args(CacheDtype)):
            check.add(f"cache is {cache}: give true, false or {' or '.join(get_args(CacheDtype))}")
        baseline = content.get("baseline")
        if baseline is not None and baseline not in names:
            check.add(f"baseline is {baseline}, which is no arm: give one of {', '.join(names)}")
        check.finish()
        study = cls(config, arms, seeds, values, settings, cache, baseline)
        for name, runs in itertools.groupby(sorted(run.name for run in study.runs())):
            if len(list(runs)) > 1:
                check.add(f"several runs would be called {name}: give other names or values")
        check.finish()
        return study

    def runs(self) -> list[PlannedRun]:
        """Return all runs, seed by seed, so that every arm has a first result early."""
        return [run for seed in self.seeds for run in self._runs_of(seed)]

    def group_of(self, arm: str, run: PlannedRun) -> str:
        """Return the group of another arm with the values of a run."""
        return arm + run.group.removeprefix(run.arm)

    def _runs_of(self, seed: int) -> Iterator[PlannedRun]:
        shared = [*(f"--config={path}" for path in self.config), *_words(self.settings)]
        short = _short_names(list(self.values))
        for arm in self.arms:
            for point in itertools.product(*self.values.values()):
                chosen = dict(zip(self.values, point, strict=True))
                group = " ".join(
                    [arm.name, *(f"{short[key]}={_text(value)}" for key, value in chosen.items())]
                )
                words = (*shared, *arm.words, *_words(chosen), f"--seed_everything={seed}")
                name = re.sub(r"[^\w.=+-]+", "-", group).strip("-")
                yield PlannedRun(f"{name}-seed{seed}", group, arm.name, seed, words)


class _Check:
    """Checks the content of a study, and collects mistakes to report them at once."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._mistakes: list[str] = []

    def add(self, mistake: str) -> None:
        self._mistakes.append(f"{self._origin}: {mistake}")

    def finish(self) -> None:
        """Raise a ConfigurationError with all mistakes, if there are any."""
        if self._mistakes:
            raise ConfigurationError("\n".join(dict.fromkeys(self._mistakes)))

    def files(self, key: str, found: object) -> tuple[str, ...]:
        """Return paths of configuration files that are there."""
        paths = [] if found is None else found if isinstance(found, list) else [found]
        for path in paths:
            if not isinstance(path, str):
                self.add(f"{key} has {path!r}, which is no path: name a file")
            elif not Path(path).is_file():
                self.add(f"{key} has {path}, which is no file: name one that is there")
        return tuple(str(path) for path in paths)

    def arms(self, found: object) -> tuple[Arm, ...]:
        """Return arms of names and overlays."""
        if not isinstance(found, Mapping) or not found:
            self.add("arms is no mapping: give each arm's overlays by its name")
            return ()
        for name in found:
            if _NAME.fullmatch(str(name)) is None:
                self.add(f"arms has {name!r}: give it a name of letters, digits and . + - _")
        return tuple(
            Arm(str(name), self._words(f"arms.{name}", each)) for name, each in found.items()
        )

    def _words(self, key: str, found: object) -> tuple[str, ...]:
        words: list[str] = []
        for each in [] if found is None else found if isinstance(found, list) else [found]:
            if isinstance(each, Mapping):
                words += _words(self.settings(key, each))
            else:
                words += [f"--config={path}" for path in self.files(key, each)]
        return tuple(words)

    def settings(self, key: str, found: object) -> Settings:
        """Return settings by dotted names."""
        if not isinstance(found, Mapping):
            self.add(f"{key} is {found}: give settings as model.optimizer.learning_rate: 1e-3")
            return {}
        flat = dict(_flat(found))
        self._names(key, flat)
        return flat

    def seeds(self, found: object) -> tuple[int, ...]:
        """Return seeds, each once."""
        if not isinstance(found, list) or not found:
            self.add("seeds is missing: give a list of numbers, as [1, 2, 3]")
            return ()
        for seed in found:
            if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
                self.add(f"seeds has {seed!r}: give whole numbers from 0 to {2**32 - 1}")
            elif found.count(seed) > 1:
                self.add(f"seeds has {seed} twice: give each once")
        return tuple(found)

    def values(self, found: object) -> dict[str, Sequence[Any]]:
        """Return a grid: a list of values by each dotted name."""
        if not isinstance(found, Mapping):
            self.add("values is no mapping: give a list of values by each setting's dotted name")
            return {}
        self._names("values", found)
        for key, values in found.items():
            if not isinstance(values, list) or not values:
                self.add(f"values.{key} is {values}: give a list of values")
            elif len({_text(value) for value in values}) < len(values):
                self.add(f"values.{key} has a value twice: give each once")
        return {str(key): values for key, values in found.items() if isinstance(values, list)}

    def _names(self, key: str, names: Mapping[Any, Any]) -> None:
        for name in names:
            if str(name) in _SET_BY_SWEEP:
                fix = _SET_BY_SWEEP[str(name)]
                self.add(f"{key} has {name}, which the sweep sets itself: {fix}")


def _flat(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings by dotted names; a class with its arguments is one value."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value and _CLASS not in value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _words(settings: Settings) -> list[str]:
    return [f"--{name}={_text(value)}" for name, value in settings.items()]


def _text(value: object) -> str:
    """Write a value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Return the shortest ends of dotted names that distinguish them."""
    short = {}
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[index:]) for index in reversed(range(len(parts)))]
        short[name] = next(
            end for end in ends if sum(f".{other}".endswith(f".{end}") for other in names) == 1
        )
    return short
