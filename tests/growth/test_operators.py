"""The operators: the paper's lineages and the rivals', letter by letter, and what none can do."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import cast, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interstack.errors import ConfigurationError
from interstack.growth.operators import OperatorName, get_operator, plan_growth
from interstack.growth.plan import GrowthPlan, descend, even_ends

PAPER_DEPTHS = (3, 6, 9, 12)


def grow(name: str, *depths: int) -> list[GrowthPlan]:
    """Plan the growth through these depths, stage after stage."""
    operator = get_operator(cast(OperatorName, name))
    lineage = tuple(range(depths[0]))
    plans = []
    for depth in depths[1:]:
        plans.append(plan_growth(operator, lineage, depth))
        lineage = descend(lineage, plans[-1])
    return plans


def lineages(name: str, *depths: int) -> list[str]:
    """Write every stage's stack as the paper does: the ancestor of each layer, counted from 1."""
    lineage = tuple(range(depths[0]))
    written = [lineage]
    for plan in grow(name, *depths):
        written.append(lineage := descend(lineage, plan))
    return [" ".join(str(ancestor + 1) for ancestor in lineage) for lineage in written]


def test_interleave_makes_the_papers_four_stacks() -> None:
    """Every layer of the first stack becomes a block that grows by its own clones."""
    assert lineages("interleave", *PAPER_DEPTHS) == [
        "1 2 3",
        "1 1 2 2 3 3",
        "1 1 1 2 2 2 3 3 3",
        "1 1 1 1 2 2 2 2 3 3 3 3",
    ]


def test_interleave_clones_the_last_layer_of_each_block() -> None:
    """Every b-th layer of stage b is copied, and the clone stands right after its original."""
    assert [plan.parents for plan in grow("interleave", *PAPER_DEPTHS)] == [
        (0, 0, 1, 1, 2, 2),
        (0, 1, 1, 2, 3, 3, 4, 5, 5),
        (0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8),
    ]


def test_interleave_serves_depths_that_blocks_do_not_divide() -> None:
    """2 → 5 → 12: blocks as even as can be, the larger one on top."""
    assert lineages("interleave", 2, 5, 12) == [
        "1 2",
        "1 1 2 2 2",
        "1 1 1 1 1 1 2 2 2 2 2 2",
    ]
    assert grow("interleave", 2, 5, 12)[1].parents == (0, 1, 1, 1, 1, 1, 2, 3, 4, 4, 4, 4)


@pytest.mark.parametrize(
    ("name", "depths", "stacks"),
    [
        ("append", (3, 6, 12), ["1 2 3", "1 2 3 1 2 3", "1 2 3 1 2 3 1 2 3 1 2 3"]),
        ("append", (2, 6), ["1 2", "1 2 1 2 1 2"]),
        (
            "gradual",
            PAPER_DEPTHS,
            ["1 2 3", "1 2 3 1 2 3", "1 2 3 1 2 3 1 2 3", "1 2 3 1 2 3 1 2 3 1 2 3"],
        ),
        ("lidas", (4, 6, 8), ["1 2 3 4", "1 2 3 2 3 4", "1 2 3 2 3 2 3 4"]),
        ("lidas", (3, 6), ["1 2 3", "1 2 3 1 2 3"]),
        ("lidas", (6, 9), ["1 2 3 4 5 6", "1 2 3 4 2 3 4 5 6"]),
        ("lidas", (3, 5), ["1 2 3", "1 2 1 2 3"]),
    ],
)
def test_rivals_make_the_stacks_of_their_papers(
    name: str, depths: tuple[int, ...], stacks: list[str]
) -> None:
    """Append, gradual stacking and LIDAS, layer by layer."""
    assert lineages(name, *depths) == stacks


def test_gradual_copies_the_uppermost_layers_and_not_the_first_ones() -> None:
    """Which copy is meant shows in the parents, where the lineages of several operators agree."""
    assert [plan.parents for plan in grow("gradual", *PAPER_DEPTHS)] == [
        (0, 1, 2, 0, 1, 2),
        (*range(6), 3, 4, 5),
        (*range(9), 6, 7, 8),
    ]
    assert grow("gradual", 4, 6)[0].parents == (0, 1, 2, 3, 2, 3)


def test_midas_copies_the_middle_block_right_after_itself() -> None:
    """The ⌈b/2⌉-th of b blocks: B1; of B1 B2 the first; of B1 B2 B3 the second."""
    first, second, third = grow("midas", *PAPER_DEPTHS)
    assert first.parents == (0, 1, 2, 0, 1, 2)
    assert second.parents == (0, 1, 2, 0, 1, 2, 3, 4, 5)
    assert third.parents == (0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8)


def test_random_puts_fresh_layers_where_interleave_puts_clones() -> None:
    """The same places, and nothing is copied."""
    for random, interleave in zip(
        grow("random", *PAPER_DEPTHS), grow("interleave", *PAPER_DEPTHS), strict=True
    ):
        assert random.parents == interleave.parents
        assert (random.fresh_clones, interleave.fresh_clones) == (True, False)


@st.composite
def increasing_depths(draw: st.DrawFn) -> tuple[int, ...]:
    """Depths of two to five stages, each deeper than the one before."""
    added = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    depths = [draw(st.integers(1, 8))]
    for more in added:
        depths.append(depths[-1] + more)
    return tuple(depths)


@given(increasing_depths())
def test_interleave_keeps_originals_parents_and_blocks_in_order(depths: tuple[int, ...]) -> None:
    """Clones follow their parent, nothing is lost, nothing overtakes."""
    lineage = tuple(range(depths[0]))
    for plan, depth in zip(grow("interleave", *depths), depths[1:], strict=True):
        assert plan.depth == depth
        assert list(plan.parents) == sorted(plan.parents)
        assert [plan.parents[place] for place in plan.original_indices] == list(range(len(lineage)))
        grown = descend(lineage, plan)
        for place in set(range(depth)) - set(plan.original_indices):
            parent = plan.parents[place]
            assert parent == len(lineage) - 1 or lineage[parent + 1] != lineage[parent]
        assert list(grown) == sorted(grown)
        lineage = grown


@given(increasing_depths())
def test_interleave_makes_blocks_as_even_as_can_be(depths: tuple[int, ...]) -> None:
    """Sizes differ by one at most, and none ever shrinks."""
    lineage = tuple(range(depths[0]))
    sizes = [1] * depths[0]
    for plan in grow("interleave", *depths):
        lineage = descend(lineage, plan)
        grown = [lineage.count(block) for block in range(depths[0])]
        assert max(grown) - min(grown) <= 1
        assert all(after >= before for before, after in zip(sizes, grown, strict=True))
        sizes = grown


@given(increasing_depths())
def test_interleave_moves_no_layer_by_more_than_one_block(depths: tuple[int, ...]) -> None:
    """Relative places, of originals and of block ends, stay within one block of where they were."""
    lineage = tuple(range(depths[0]))
    for plan in grow("interleave", *depths):
        for parent, place in enumerate(plan.original_indices):
            moved = abs((place + 0.5) / plan.depth - (parent + 0.5) / plan.old_depth)
            assert moved <= 1 / depths[0]
        grown = descend(lineage, plan)
        for block in range(depths[0]):
            before, after = bisect_right(lineage, block), bisect_right(grown, block)
            assert abs(after / len(grown) - before / len(lineage)) <= 1 / depths[0]
        lineage = grown


@given(increasing_depths(), st.data())
def test_interleave_leaves_taps_on_block_ends(depths: tuple[int, ...], data: st.DataObject) -> None:
    """A tap goes with its block, on whose last layer it sits after every growth."""
    taps = even_ends(depths[0], data.draw(st.integers(1, depths[0])))
    blocks = taps
    lineage = tuple(range(depths[0]))
    for plan in grow("interleave", *depths):
        taps, lineage = plan.move_taps(taps), descend(lineage, plan)
        assert tuple(lineage[tap] for tap in taps) == blocks
        assert all(tap + 1 == plan.depth or lineage[tap + 1] > lineage[tap] for tap in taps)
        assert taps[-1] == plan.depth - 1


@given(
    st.sampled_from([name for name in get_args(OperatorName) if name != "append"]),
    st.integers(1, 4),
    st.integers(2, 5),
)
def test_every_operator_serves_equal_stages_and_keeps_taps_apart(
    name: str, step: int, stages: int
) -> None:
    """Depths K, 2K, 3K … work for all; taps stay strictly increasing and end on top."""
    depths = tuple(step * stage for stage in range(1, stages + 1))
    for placement in ("block_end", "original"):
        taps = tuple(range(step))
        for plan in grow(name, *depths):
            taps = plan.move_taps(taps, placement)
            assert len(taps) == step
            assert all(below < above for below, above in pairwise(taps))
            assert taps[-1] == plan.depth - 1


@pytest.mark.parametrize(
    ("name", "depths", "message"),
    [
        ("append", (6, 9), "append repeats the whole stack.*multiple of 6, such as 12"),
        ("gradual", (3, 7), "gradual copies layers once.*3 layers to 7.*at most 6"),
        ("midas", (3, 8), "midas copies layers once.*at most 6"),
        ("midas", (3, 5), "midas copies a block of 2 layers, but 3 layers are no whole number"),
        ("lidas", (2, 5), "lidas copies layers once.*at most 4"),
        ("interleave", (6, 6), "6 layers can't grow to 6: stage depths have to increase"),
        ("random", (6, 3), "6 layers can't grow to 3: stage depths have to increase"),
    ],
)
def test_a_depth_that_an_operator_cannot_serve_is_refused(
    name: str, depths: tuple[int, ...], message: str
) -> None:
    """The message names the operator, the depths and a way out."""
    with pytest.raises(ConfigurationError, match=message):
        grow(name, *depths)


@pytest.mark.parametrize("name", ["interleave", "random"])
def test_interleave_refuses_a_stack_that_it_could_only_shrink(name: str) -> None:
    """A lineage from elsewhere may hold a block that is too large already."""
    with pytest.raises(ConfigurationError, match="not grown by interleave"):
        plan_growth(get_operator(cast(OperatorName, name)), (0, 0, 0, 0, 1), 6)


def test_an_operator_that_plans_another_depth_is_caught() -> None:
    """Nobody's own operator grows a student to what was not asked for."""
    with pytest.raises(ConfigurationError, match="planned 3 → 4 layers where 3 → 6"):
        plan_growth(lambda lineage, depth: GrowthPlan((0, 1, 2, 2)), range(3), 6)  # noqa: ARG005
    with pytest.raises(ConfigurationError, match="planned 2 → 4 layers where 3 → 4"):
        plan_growth(lambda lineage, depth: GrowthPlan((0, 0, 1, 1)), range(3), 4)  # noqa: ARG005


def test_an_unknown_operator_is_refused_with_the_names_there_are() -> None:
    """The names that can be given are listed."""
    with pytest.raises(ConfigurationError, match=r"'braid'.*interleave, append, gradual, midas"):
        get_operator(cast(OperatorName, "braid"))
