"""A user's operator: what is asked of a function, and one line for each way in which it fails."""

from __future__ import annotations

import random as random_numbers
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interstack.errors import ConfigurationError
from interstack.growth import operators
from interstack.growth.operators import OwnOperator, get_operator, plan_growth
from interstack.growth.plan import GrowthPlan


def repeat_top(old_depth: int, new_depth: int) -> list[int]:
    """Clone the top layer."""
    return [min(layer, old_depth - 1) for layer in range(new_depth)]


def with_lineage(old_depth: int, new_depth: int, *, lineage: Sequence[int]) -> GrowthPlan:
    """Interleave, as ours does, but with fresh layers."""
    del old_depth
    return GrowthPlan(operators.interleave(lineage, new_depth).parents, fresh_clones=True)


def own(function: Callable[..., object]) -> OwnOperator:
    """Name a function as a configuration would."""
    return OwnOperator("mymodule.grow", function)


@given(st.integers(1, 6), st.integers(1, 6))
def test_a_function_of_two_depths_is_an_operator(present: int, added: int) -> None:
    """By its dotted name, wherever an operator's name is taken."""
    plan = plan_growth(f"{__name__}.repeat_top", range(present), present + added)
    assert list(plan.parents) == [*range(present), *[present - 1] * added]


def test_a_function_may_ask_for_the_lineage_and_return_a_plan() -> None:
    """For operators that go by blocks, and for fresh layers."""
    plan = plan_growth(f"{__name__}.with_lineage", (0, 0, 1, 1), 6)
    assert plan == plan_growth("random", (0, 0, 1, 1), 6)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda old, new: [0] * new, r"returns 6 parents, the highest of them 0, .*0 to 2 occurs"),  # noqa: ARG005
        (lambda old, new: range(old), r"returns 3 parents, .* 3 → 6 layers: return 6 parents"),  # noqa: ARG005
        (lambda old, new: [2, 1, 0, 0, 0, 0], r"returns \[2, 1, 0, 0, 0, 0\] .*in order"),  # noqa: ARG005
        (lambda old, new: [-1] * new, r"returns \[-1, .*every parent from 0 up has to occur"),  # noqa: ARG005
        (lambda old, new: None, "a NoneType that holds no layer indices"),  # noqa: ARG005
        (lambda old, new: ["0"] * new, "a list that holds no layer indices"),  # noqa: ARG005
        (lambda old, new: [], "a list that holds no layer indices"),  # noqa: ARG005
        (lambda old, new: [old / 0] * new, r"raises ZeroDivisionError .*correct .*test_own_op"),
        (lambda old: [old], r"its parameters are \(old\), .*: change its parameters"),
        (
            lambda old, new: sorted(
                [*range(old), *random_numbers.choices(range(old), k=new - old)]
            ),
            "returns other parents each time .*let it draw no random numbers",
        ),
    ],
)
def test_a_function_that_returns_no_plan_is_refused(
    function: Callable[..., object], message: str
) -> None:
    """With its name, what it returned and for which step."""
    random_numbers.seed(0)
    with pytest.raises(ConfigurationError, match=message) as raised:
        own(function)(range(3), 6)
    assert str(raised.value).startswith("growth.operator is mymodule.grow, which ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nomodule.grow", "nomodule can't be imported .*No module named 'nomodule'"),
        (f"{__name__}.grow_nothing", "has no grow_nothing: correct the name"),
        ("os.kill", "type builtin_function_or_method: give the name of a Python function"),
        ("interstack.growth.operators.midas", "give growth.operator midas"),
        ("not a name.at all", "no growth operator 'not a name.at all'.*mymodule.my_operator"),
    ],
)
def test_a_name_of_no_function_is_refused(name: str, message: str) -> None:
    """A function of the system is not called with the depths of whoever wrote a configuration."""
    with pytest.raises(ConfigurationError, match=message):
        get_operator(name)
