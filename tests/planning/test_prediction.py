"""From a measured step to a run: arithmetic that can be done by hand."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interstack.planning.prediction import growth_ceiling, predict, share_steps

DEPTHS = (3, 6, 9, 12)


def ceiling(shares: list[float]) -> float:
    """What growth could be worth over the paper's depths."""
    return growth_ceiling(DEPTHS, share_steps(shares, 10_000))


def test_the_ceiling_is_the_papers() -> None:
    """1.60 for equal stages, less the more of the run is spent deep."""
    assert ceiling([0.25] * 4) == pytest.approx(1.60, abs=0.005)
    for alpha, worth in ((1, 1.33), (2, 1.20), (3, 1.13)):
        weights = [stage**alpha for stage in (1, 2, 3, 4)]
        shares = [weight / sum(weights) for weight in weights]
        assert ceiling(shares) == pytest.approx(worth, abs=0.005)


@given(weights=st.lists(st.integers(1, 20), min_size=1, max_size=6), total=st.integers(6, 5_000))
def test_each_step_belongs_to_the_stage_that_has_begun(weights: list[int], total: int) -> None:
    """Counted step by step, in whole numbers."""
    shares = [weight / sum(weights) for weight in weights]
    steps = share_steps(shares, total)
    begins = [ceil(sum(weights[:stage]) * total / sum(weights)) for stage in range(len(weights))]
    expected = [
        sum(begin <= step < end for step in range(total))
        for begin, end in zip(begins, [*begins[1:], total], strict=True)
    ]
    assert steps == expected
    assert sum(steps) == total


def test_a_prediction_is_steps_times_seconds() -> None:
    """Two stages, waits and validations, and one lever."""
    prediction = predict(
        (3, 6),
        (10, 30),
        {3: 1.0, 6: 2.0},
        {"targets cached": 0.5},
        waits_seconds=4.0,
        validation_seconds=6.0,
    )
    assert [stage.share for stage in prediction.stages] == [0.25, 0.75]
    assert [stage.seconds for stage in prediction.stages] == [11.0, 63.0]
    assert prediction.training_seconds == 74.0
    assert prediction.wall_clock == 80.0
    assert prediction.worth.full_depth_seconds == 84.0
    assert prediction.worth.growth == pytest.approx(84 / 74)
    assert prediction.ceiling == pytest.approx(6 * 40 / (3 * 10 + 6 * 30))
    lever = prediction.levers["targets cached"]
    assert (lever.seconds, lever.full_depth_seconds) == (54.0, 64.0)
