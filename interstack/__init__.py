"""interstack: distil a speech foundation model into a student that grows while it trains.

What is imported from here is loaded when it is first used: `import interstack` costs nothing, and
Lightning and transformers are imported with what needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interstack.checkpointing.callback import Checkpoints
    from interstack.distillation.objective import Objective
    from interstack.growth.callback import InterleavedStacking
    from interstack.growth.operators import (
        append,
        gradual,
        interleave,
        lidas,
        midas,
        plan_growth,
        random,
    )
    from interstack.growth.optimizer_state import inherit_learning_rate, inherit_optimizer_state
    from interstack.growth.plan import GrowthPlan, descend
    from interstack.growth.schedule import (
        GrowthSchedule,
        explicit_shares,
        make_schedule,
        prop_shares,
    )
    from interstack.growth.surgery import grow_layers, grow_on_load
    from interstack.growth.trainer_callback import StackingTrainerCallback
    from interstack.models.family import TeacherEncoder
    from interstack.models.student import Student
    from interstack.models.teacher import Teacher

__version__ = "0.1.0"

_MODULES = {
    "interstack.checkpointing.callback": ("Checkpoints",),
    "interstack.distillation.objective": ("Objective",),
    "interstack.growth.callback": ("InterleavedStacking",),
    "interstack.growth.operators": (
        "append",
        "gradual",
        "interleave",
        "lidas",
        "midas",
        "plan_growth",
        "random",
    ),
    "interstack.growth.optimizer_state": ("inherit_learning_rate", "inherit_optimizer_state"),
    "interstack.growth.plan": ("GrowthPlan", "descend"),
    "interstack.growth.schedule": (
        "GrowthSchedule",
        "explicit_shares",
        "make_schedule",
        "prop_shares",
    ),
    "interstack.growth.surgery": ("grow_layers", "grow_on_load"),
    "interstack.growth.trainer_callback": ("StackingTrainerCallback",),
    "interstack.models.family": ("TeacherEncoder",),
    "interstack.models.student": ("Student",),
    "interstack.models.teacher": ("Teacher",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Checkpoints",
    "GrowthPlan",
    "GrowthSchedule",
    "InterleavedStacking",
    "Objective",
    "StackingTrainerCallback",
    "Student",
    "Teacher",
    "TeacherEncoder",
    "append",
    "descend",
    "explicit_shares",
    "gradual",
    "grow_layers",
    "grow_on_load",
    "inherit_learning_rate",
    "inherit_optimizer_state",
    "interleave",
    "lidas",
    "make_schedule",
    "midas",
    "plan_growth",
    "prop_shares",
    "random",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401, whatever is asked for
    """Import a name of the library when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'interstack' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
