"""The schedule: stages as shares of the run, and the depth due at each point of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interstack.errors import ConfigurationError
from interstack.growth.schedule import (
    LengthUnit,
    explicit_shares,
    make_schedule,
    prop_shares,
)


def test_prop_1_of_four_stages_is_10_20_30_and_40_percent() -> None:
    """The paper's table."""
    assert prop_shares(4, 1.0) == pytest.approx([0.10, 0.20, 0.30, 0.40])


def test_prop_alpha_gives_stage_b_a_share_proportional_to_b_to_the_alpha() -> None:
    """PROP-2 of three stages: 1, 4 and 9 fourteenths; α = 0 is EQL."""
    assert prop_shares(3, 2.0) == pytest.approx([1 / 14, 4 / 14, 9 / 14])
    assert prop_shares(4, 0.0) == [0.25] * 4


@pytest.mark.parametrize(
    ("lengths", "total", "unit", "shares"),
    [
        ((1, 2, 3, 4), 10, "epochs", [0.1, 0.2, 0.3, 0.4]),
        ((0.5, 2.25, 2.25), 5, "epochs", [0.1, 0.45, 0.45]),
        ((100, 300), 400, "steps", [0.25, 0.75]),
        ((1 / 3, 1 / 3, 1 / 3), 1, "epochs", [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_explicit_lengths_become_shares_of_the_run(
    lengths: tuple[float, ...], total: float, unit: LengthUnit, shares: list[float]
) -> None:
    """Whole and fractional epochs, and steps."""
    assert explicit_shares(lengths, total, unit) == pytest.approx(shares)


@pytest.mark.parametrize(
    ("lengths", "total", "unit", "message"),
    [
        ((1, 2), 4, "epochs", r"sum to 3 epochs, but the run has 4: .* trainer.max_epochs"),
        ((300, 200), 400, "steps", r"sum to 500 steps, but the run has 400: .* trainer.max_steps"),
        ((-1, 5), 4, "epochs", "have to be positive epochs"),
        ((0, 4), 4, "epochs", "have to be positive epochs"),
        ((), 4, "epochs", "have to be positive epochs"),
        ((1.5, 2.5), 4, "steps", "have to be whole steps"),
    ],
)
def test_lengths_that_do_not_make_the_run_are_refused(
    lengths: tuple[float, ...], total: float, unit: LengthUnit, message: str
) -> None:
    """With their sum, the run's length and the Trainer's option."""
    with pytest.raises(ConfigurationError, match=message):
        explicit_shares(lengths, total, unit)


@pytest.mark.parametrize(
    ("depths", "shares", "message"),
    [
        ((3, 6), (0.2, 0.3, 0.5), r"2 stage depths \[3, 6\] need 2 lengths, not 3"),
        ((3, 6, 9), (0.5, 0.5), r"3 stage depths \[3, 6, 9\] need 3 lengths, not 2"),
        ((3, 6), (0.5, 0.6), "sum to 1"),
        ((3, 6), (1.2, -0.2), "have to be positive"),
        ((6, 3), (0.5, 0.5), "have to increase"),
        ((3, 3), (0.5, 0.5), "have to increase"),
        ((0, 3), (0.5, 0.5), "begin with 1 layer or more"),
        ((), (), "begin with 1 layer or more"),
    ],
)
def test_stages_that_make_no_schedule_are_refused(
    depths: tuple[int, ...], shares: tuple[float, ...], message: str
) -> None:
    """Too many or too few lengths, shares that are no shares, depths that do not grow."""
    with pytest.raises(ConfigurationError, match=message):
        make_schedule(depths, shares)


def test_stages_follow_each_other_without_a_gap() -> None:
    """From 0 to exactly 1, whatever the sums' rounding."""
    stages = make_schedule((3, 6, 9, 12), prop_shares(4, 1.0)).stages
    assert [stage.depth for stage in stages] == [3, 6, 9, 12]
    assert stages[0].start == 0.0
    assert stages[-1].end == 1.0
    assert [stage.end for stage in stages[:-1]] == [stage.start for stage in stages[1:]]


@pytest.mark.parametrize(
    ("progress", "depth"),
    [(0, 3), (0.099, 3), (0.1, 6), (0.299, 6), (0.3, 9), (0.599, 9), (0.6, 12), (1, 12), (2, 12)],
)
def test_a_stage_begins_on_its_boundary(progress: float, depth: int) -> None:
    """0.1 + 0.2 is not quite 0.3, and growth is due there all the same."""
    schedule = make_schedule((3, 6, 9, 12), prop_shares(4, 1.0))
    assert schedule.depth_at(progress) == depth
    assert schedule.stages[schedule.stage_at(progress)].depth == depth


@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=6), steps=st.integers(1, 400))
def test_every_stage_gets_its_share_of_the_steps(weights: list[int], steps: int) -> None:
    """Give or take one; the first stage is there at the start and stages never go back."""
    shares = [weight / sum(weights) for weight in weights]
    schedule = make_schedule(range(1, len(shares) + 1), shares)
    stages = [schedule.stage_at(step / steps) for step in range(steps)]
    assert stages[0] == 0
    assert stages == sorted(stages)
    for stage, share in enumerate(shares):
        assert abs(stages.count(stage) - share * steps) <= 1 + 1e-6


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=6))
def test_stages_given_in_steps_have_exactly_those_steps(lengths: list[int]) -> None:
    """No rounding of a quotient adds or takes one."""
    total = sum(lengths)
    schedule = make_schedule(range(1, len(lengths) + 1), explicit_shares(lengths, total, "steps"))
    stages = [schedule.stage_at(step / total) for step in range(total)]
    assert [stages.count(stage) for stage in range(len(lengths))] == lengths
