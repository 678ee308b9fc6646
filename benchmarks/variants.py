"""What is compared: the reference, each lever alone, and the levers together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from interstack.models.config import TeacherDtype
from interstack.target_cache.format import CacheDtype

DEPTHS: Final = (3, 6, 9, 12)
"""Stages of a growing run. EQL gives each as much time, so a step of the run is their mean."""

REFERENCE: Final = "reference"
GROWTH: Final = "growth"
SHARED_LIVE_GROWTH: Final = "shared front end, live teacher, growth"
SHARED_CACHE_FULL: Final = "shared front end, cache float16, full depth"
SHARED_CACHE_GROWTH: Final = "shared front end, cache float16, growth"
WITHOUT_DROPOUT: Final = ", without dropout"
"""What the name of a variant ends with that is measured with dropout too."""


@dataclass(frozen=True)
class Setting:
    """How a step is computed. Defaults are the reference's.

    Attributes:
        front_end: The student's.
        targets: ``live``, or the number format of the cache they are read from.
        teacher_dtype: What a live teacher computes in.
        bf16: Whether the student computes in autocast to bfloat16.
        compiled: Whether the layers of student and teacher are compiled.
        dropout: The student's, of all kinds; the paper's is 0.1.
    """

    front_end: Literal["own", "shared"] = "own"
    targets: CacheDtype | Literal["live"] = "live"
    teacher_dtype: TeacherDtype = "float32"
    bf16: bool = False
    compiled: bool = False
    dropout: float = 0.1


@dataclass(frozen=True)
class Variant:
    """A way to train: its step costs the mean of its depths' steps.

    Attributes:
        name: In records and tables.
        setting: How its steps are computed.
        depths: Layers of its stages.
    """

    name: str
    setting: Setting
    depths: tuple[int, ...] = DEPTHS[-1:]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The steps that have to be timed."""
        return tuple(Cell(self.setting, depth) for depth in self.depths)


@dataclass(frozen=True)
class Cell:
    """A step to be timed, which several variants may have in common.

    Attributes:
        setting: How it is computed.
        depth: Layers of the student.
    """

    setting: Setting
    depth: int


def variants(*, bf16: bool, compiled: bool) -> tuple[Variant, ...]:
    """Return all that are compared, the reference first.

    Args:
        bf16: Let every student compute in bfloat16; the lever drops out then.
        compiled: Also try compiled layers.
    """
    own = Setting(bf16=bf16)
    shared = replace(own, front_end="shared")
    cached = replace(shared, targets="float16")
    halves = [] if bf16 else [Variant("student in bfloat16", replace(own, bf16=True))]
    cached_halves = [
        Variant(f"{SHARED_CACHE_GROWTH}, bfloat16", replace(cached, bf16=True), DEPTHS)
        for _ in halves
    ]
    alone = [Variant("compiled layers", replace(own, compiled=True))]
    together = [Variant(f"{SHARED_CACHE_GROWTH}, compiled", replace(cached, compiled=True), DEPTHS)]
    reference = Variant(REFERENCE, own)
    cached_alike = [
        Variant(SHARED_CACHE_FULL, cached),
        Variant(SHARED_CACHE_GROWTH, cached, DEPTHS),
    ]
    return (
        reference,
        Variant(GROWTH, own, DEPTHS),
        Variant("shared front end", shared),
        Variant("cache float16", replace(own, targets="float16")),
        *halves,
        Variant("teacher in bfloat16", replace(own, teacher_dtype="bfloat16")),
        *(alone if compiled else ()),
        Variant(SHARED_LIVE_GROWTH, shared, DEPTHS),
        *cached_alike,
        Variant("shared front end, cache int8, growth", replace(cached, targets="int8"), DEPTHS),
        *cached_halves,
        *(together if compiled else ()),
        *map(_without_dropout, (reference, *cached_alike, *cached_halves)),
    )


def _without_dropout(variant: Variant) -> Variant:
    setting = replace(variant.setting, dropout=0.0)
    return replace(variant, name=variant.name + WITHOUT_DROPOUT, setting=setting)


def cells_of(compared: Iterable[Variant]) -> tuple[Cell, ...]:
    """Return each step once that any of the variants needs, in their order."""
    return tuple(dict.fromkeys(cell for variant in compared for cell in variant.cells))
