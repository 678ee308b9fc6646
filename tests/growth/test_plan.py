"""The growth plan: an index map that loses nothing, and taps that follow it."""

from __future__ import annotations

import pytest

from interstack.errors import ConfigurationError
from interstack.growth.plan import GrowthPlan, descend, even_ends


@pytest.mark.parametrize(
    "parents",
    [(), (1, 2), (0, 2), (0, 2, 1), (1, 0, 1), (-1, 0), (2, 1, 0)],
    ids=["empty", "bottom lost", "gap", "swapped", "late bottom", "negative", "reversed"],
)
def test_a_plan_that_loses_layers_or_their_order_is_refused(parents: tuple[int, ...]) -> None:
    """Every parent occurs, and first occurrences are in order."""
    with pytest.raises(ConfigurationError, match="loses layers of the present stack or changes"):
        GrowthPlan(parents)


def test_the_first_layer_of_a_parent_is_the_original_and_later_ones_are_clones() -> None:
    """Wherever the clones stand."""
    plan = GrowthPlan((0, 1, 0, 1, 2))
    assert [plan.is_clone(place) for place in range(5)] == [False, False, True, True, False]
    assert plan.original_indices == [0, 1, 4]
    assert (plan.old_depth, plan.depth) == (3, 5)


@pytest.mark.parametrize(("parents", "keeps"), [((0, 0, 1, 1), True), ((0, 1, 0, 1), False)])
def test_order_is_kept_where_clones_stand_beside_their_originals(
    parents: tuple[int, ...], keeps: bool
) -> None:
    """Only then can a tap be said to stay on its block."""
    assert GrowthPlan(parents).keeps_order is keeps


def test_a_lineage_goes_through_a_growth_by_way_of_the_parents() -> None:
    """A clone's ancestor is its parent's."""
    assert descend((0, 0, 1, 1), GrowthPlan((0, 1, 1, 2, 3, 3))) == (0, 0, 0, 1, 1, 1)


def test_taps_move_to_the_block_ends_of_the_papers_student() -> None:
    """Teacher layers 4, 8 and 12 are learnt by layers 2, 4 and 6 of six, 3, 6 and 9 of nine."""
    first = GrowthPlan((0, 0, 1, 1, 2, 2))
    second = GrowthPlan((0, 1, 1, 2, 3, 3, 4, 5, 5))
    taps = first.move_taps((0, 1, 2))
    assert taps == (1, 3, 5)
    assert second.move_taps(taps) == (2, 5, 8)


def test_taps_on_originals_stay_where_their_layer_goes_but_the_uppermost() -> None:
    """The last layer's loss is always the top layer's."""
    assert GrowthPlan((0, 0, 1, 1, 2, 2)).move_taps((0, 1, 2), "original") == (0, 2, 5)


def test_taps_are_spread_evenly_again_where_an_operator_tears_blocks_apart() -> None:
    """Appended to 1 2 3 1 2 3, the taps of three layers sit on the 2nd, 4th and 6th."""
    assert GrowthPlan((0, 1, 2, 0, 1, 2)).move_taps((0, 1, 2)) == (1, 3, 5)


@pytest.mark.parametrize(
    ("depth", "parts", "ends"),
    [(12, 3, (3, 7, 11)), (3, 3, (0, 1, 2)), (5, 2, (1, 4)), (12, 1, (11,)), (7, 3, (1, 3, 6))],
)
def test_a_stack_is_cut_into_even_parts(depth: int, parts: int, ends: tuple[int, ...]) -> None:
    """The last layer of each part; three parts of HuBERT Base end on layers 4, 8 and 12."""
    assert even_ends(depth, parts) == ends


@pytest.mark.parametrize(
    ("depth", "parts", "ends"), [(1, 3, (0, 0, 0)), (2, 3, (0, 1, 1)), (3, 4, (0, 1, 2, 2))]
)
def test_parts_share_layers_where_there_are_more(
    depth: int, parts: int, ends: tuple[int, ...]
) -> None:
    """The last one is always the top layer's."""
    assert even_ends(depth, parts) == ends
