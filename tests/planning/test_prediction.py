"""From a measured step to a run: arithmetic that can be done by hand."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interstack.growth.schedule import GrowthSchedule, RunLength, make_schedule
from interstack.planning.predict import (
    StageLength,
    StepSplit,
    measure_stages,
    predict,
    speedup_ceiling,
)

DEPTHS = (3, 6, 9, 12)


def ceiling(shares: list[float]) -> float:
    """Return the highest speedup over the paper's depths."""
    run = RunLength(10_000, "steps")
    lengths = measure_stages(make_schedule(DEPTHS, shares), run, 100, lambda _: 1)
    return speedup_ceiling(DEPTHS, [length.steps for length in lengths])


def test_the_ceiling_is_the_papers() -> None:
    """1.60 for equal stages, less the more of the run is spent deep."""
    assert ceiling([0.25] * 4) == pytest.approx(1.60, abs=0.005)
    for alpha, speedup in ((1, 1.33), (2, 1.20), (3, 1.13)):
        weights = [stage**alpha for stage in (1, 2, 3, 4)]
        shares = [weight / sum(weights) for weight in weights]
        assert ceiling(shares) == pytest.approx(speedup, abs=0.005)


def staged(weights: list[int]) -> GrowthSchedule:
    """Return stages of these shares."""
    return make_schedule(
        [number + 1 for number in range(len(weights))],
        [weight / sum(weights) for weight in weights],
    )


@given(weights=st.lists(st.integers(1, 20), min_size=1, max_size=6), total=st.integers(6, 500))
def test_each_step_belongs_to_the_stage_that_has_started(weights: list[int], total: int) -> None:
    """Counted step by step, in whole numbers."""
    begins = [Fraction(sum(weights[:stage]), sum(weights)) for stage in range(len(weights))]
    expected = [0] * len(weights)
    for step in range(total):
        expected[sum(begin <= Fraction(step, total) for begin in begins) - 1] += 1
    lengths = measure_stages(staged(weights), RunLength(total, "steps"), 7, lambda _: 1)
    assert [length.steps for length in lengths] == expected
    assert [length.batches for length in lengths] == expected


def windows(*sizes: int) -> Callable[[int], int]:
    """Return what a GradientAccumulationScheduler says: the last size holds from its epoch on."""
    return lambda epoch: sizes[min(epoch, len(sizes) - 1)]


@pytest.mark.parametrize(
    ("total", "unit", "sizes", "expected"),
    [
        # epochs of 5 batches in 3 steps, the third a rest; growth at half of the 3 epochs' batches
        (3, "epochs", (2,), [(5, 9), (4, 6)]),
        # epochs of 5 steps, then of 2 that hold 3 and 2 batches
        (3, "epochs", (1, 3), [(6, 8), (3, 7)]),
        # of 10 steps the first 5 are epoch 0, the others 2 an epoch
        (10, "steps", (1, 3), [(5, 5), (5, 13)]),
    ],
)
def test_a_stage_counts_the_batches_of_its_steps(
    total: int, unit: str, sizes: tuple[int, ...], expected: list[tuple[int, int]]
) -> None:
    """Growth comes before a step whose first batch is past its share of the run."""
    run = RunLength(total, unit)  # type: ignore[arg-type]
    assert measure_stages(staged([1, 1]), run, 5, windows(*sizes)) == expected


def split(batch: float, optimizer: float) -> StepSplit:
    """Return where the time of a step goes that takes this for its batch, this for its update."""
    return StepSplit(0.0, 0.0, 0.0, batch, 0.0, optimizer)


def test_a_prediction_is_batches_and_updates_times_seconds() -> None:
    """Two stages, of which the second accumulates; waits and validations, and one alternative."""
    prediction = predict(
        (3, 6),
        [StageLength(10, 10), StageLength(30, 60)],
        {3: split(0.75, 0.25), 6: split(1.5, 0.5)},
        {"targets cached": 0.5},
        waits_seconds=4.0,
        validation_seconds=6.0,
    )
    assert [stage.share for stage in prediction.stages] == [0.25, 0.75]
    assert [stage.seconds for stage in prediction.stages] == [11.0, 108.0]
    assert prediction.training_seconds == 119.0
    assert prediction.wall_clock == 125.0
    assert prediction.configured.full_depth_seconds == 129.0
    assert prediction.configured.speedup == pytest.approx(129 / 119)
    assert prediction.ceiling == pytest.approx(6 * 70 / (3 * 10 + 6 * 60))
    cached = prediction.alternatives["targets cached"]
    assert (cached.seconds, cached.full_depth_seconds) == (84.0, 94.0)
