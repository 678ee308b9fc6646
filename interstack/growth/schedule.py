"""When the student grows: stages as shares of the run, and the depth due at any point of it.

A run is measured by its *progress*, from 0 (nothing done) to 1 (done). Depth is a function of
progress alone, so a run that is cut and resumed anywhere grows where it would have grown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from interstack.errors import ConfigurationError

ScheduleKind = Literal["eql", "prop", "explicit"]
LengthUnit = Literal["epochs", "steps"]

_TOLERANCE = 1e-9  # progress is a quotient of counts; sums of shares may miss it by rounding


@dataclass(frozen=True)
class Stage:
    """A stretch of the run at one depth.

    Attributes:
        depth: Encoder layers of the student.
        start: Progress at which the stage begins.
        end: Progress at which it ends.
    """

    depth: int
    start: float
    end: float


@dataclass(frozen=True)
class GrowthSchedule:
    """The stages of a run, gapless from progress 0 to 1."""

    stages: tuple[Stage, ...]

    def stage_at(self, progress: float) -> int:
        """Return the index of the stage that a point of the run lies in.

        Args:
            progress: Share of the run that is done, 0 to 1. At 1 and past it the last stage holds.
        """
        begun = [stage.start <= progress + _TOLERANCE for stage in self.stages]
        return max(0, sum(begun) - 1)

    def depth_at(self, progress: float) -> int:
        """Return the depth due at a point of the run; see ``stage_at``."""
        return self.stages[self.stage_at(progress)].depth


def make_schedule(depths: Sequence[int], shares: Sequence[float] | None = None) -> GrowthSchedule:
    """Lay stages of the given depths and shares of the run one after another.

    Args:
        depths: Layers of every stage, strictly increasing.
        shares: Length of every stage as a share of the run; they sum to 1. By default equal ones.

    Raises:
        ConfigurationError: If depths do not increase, or shares do not fit them.

    Example:
        >>> schedule = make_schedule((3, 6, 9, 12))
        >>> [schedule.depth_at(step / 100) for step in (0, 24, 25, 99)]
        [3, 3, 6, 12]
    """
    check_depths(depths)
    if shares is None:
        shares = prop_shares(len(depths), 0.0)
    if len(shares) != len(depths):
        raise ConfigurationError(
            f"{len(depths)} stage depths {list(depths)} need {len(depths)} lengths, not "
            f"{len(shares)}: {list(shares)}"
        )
    if abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0:
        raise ConfigurationError(f"stage shares {list(shares)} have to be positive and sum to 1")
    ends = [sum(shares[: stage + 1]) for stage in range(len(shares))]
    ends[-1] = 1.0
    starts = [0.0, *ends[:-1]]
    return GrowthSchedule(
        tuple(
            Stage(depth, start, end) for depth, start, end in zip(depths, starts, ends, strict=True)
        )
    )


def prop_shares(num_stages: int, alpha: float) -> list[float]:
    """PROP-α: stage b of B takes a share proportional to b^α (arXiv 2606.11766).

    PROP-1 with four stages is 10, 20, 30 and 40 %; PROP-0 is EQL, equal shares.
    """
    weights = [(stage + 1) ** alpha for stage in range(num_stages)]
    return [weight / sum(weights) for weight in weights]


def explicit_shares(lengths: Sequence[float], total: float, unit: LengthUnit) -> list[float]:
    """Turn stage lengths, given in epochs or steps, into shares of the run.

    Args:
        lengths: Length of every stage; epochs may be fractions.
        total: Length of the whole run in the same unit.
        unit: What is counted, for the message.

    Raises:
        ConfigurationError: If a length is not positive, or the lengths do not sum to the run.
    """
    if not lengths or min(lengths) <= 0:
        raise ConfigurationError(f"growth.lengths {list(lengths)} have to be positive {unit}")
    if unit == "steps" and any(length != int(length) for length in lengths):
        raise ConfigurationError(f"growth.lengths {list(lengths)} have to be whole steps")
    if abs(sum(lengths) - total) > 1e-6 * total:
        raise ConfigurationError(
            f"growth.lengths {list(lengths)} sum to {sum(lengths):g} {unit}, but the run has "
            f"{total:g}: change the lengths or trainer.max_{unit}"
        )
    return [length / total for length in lengths]


def check_depths(depths: Sequence[int]) -> None:
    """Refuse depths that are missing, below 1 or not strictly increasing.

    Raises:
        ConfigurationError: In that case.
    """
    if not depths or depths[0] < 1:
        raise ConfigurationError(f"growth.depths {list(depths)} has to begin with 1 layer or more")
    if any(above <= below for below, above in pairwise(depths)):
        raise ConfigurationError(
            f"growth.depths {list(depths)} have to increase from stage to stage"
        )
