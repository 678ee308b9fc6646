"""The growth operators: pure functions from a present and a wanted depth to a ``GrowthPlan``.

Layers are written 1 2 3 … in the comments and counted from 0 in the code. Sources: interleave,
arXiv 2606.11766; append, Gong et al. 2019 (StackBERT) and 2405.15319; gradual, Reddi et al. 2023;
midas, 2409.19044; lidas, 2512.08819.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from interstack.errors import ConfigurationError
from interstack.growth.plan import GrowthPlan

OperatorName = Literal["interleave", "append", "gradual", "midas", "lidas", "random"]

_GOLDEN_RATIO = (5**0.5 - 1) / 2


class GrowthOperator(Protocol):
    """What every operator is: lineage of the present stack and wanted depth in, plan out."""

    def __call__(self, lineage: Sequence[int], depth: int) -> GrowthPlan:
        """Plan the growth to ``depth`` layers.

        Args:
            lineage: For every present layer, the index of its ancestor in the first stack;
                ``range(n)`` where nothing has grown yet. Its length is the present depth.
            depth: Layers wanted, more than there are.

        Raises:
            ConfigurationError: If the operator can't serve this step.
        """


def interleave(lineage: Sequence[int], depth: int) -> GrowthPlan:
    """Insert clones right after their originals: 1 2 3 → 1 1 2 2 3 3 → 1 1 1 2 2 2 3 3 3.

    Each layer of the first stack becomes a block that grows by clones of its last layer. Where the
    depth is no multiple of the number of blocks, their sizes differ by one at most. The larger
    blocks are the top one and others spread over the stack, lest all layers below them sink.
    """
    sizes = _block_sizes(lineage)
    base, num_larger = divmod(depth, len(sizes))
    larger = _spread(len(sizes))[:num_larger]
    parents: list[int] = []
    end = 0
    for block, size in enumerate(sizes):
        wanted = base + (block in larger)
        if wanted < size:
            raise ConfigurationError(
                f"interleave can't grow blocks of {sizes} layers to {depth} layers evenly: the "
                "stack was not grown by interleave so far"
            )
        parents += range(end, end + size)
        end += size
        parents += [end - 1] * (wanted - size)
    return GrowthPlan(tuple(parents))


def append(lineage: Sequence[int], depth: int) -> GrowthPlan:
    """Stack the whole present stack on top of itself: 1 2 3 → 1 2 3 1 2 3."""
    present = len(lineage)
    if depth % present:
        raise ConfigurationError(
            f"append repeats the whole stack, so it can't grow {present} layers to {depth}: give "
            f"a multiple of {present}, such as {2 * present}"
        )
    return GrowthPlan(tuple(range(present)) * (depth // present))


def gradual(lineage: Sequence[int], depth: int) -> GrowthPlan:
    """Copy the last layers on top: 1 2 3 → 1 2 3 1 2 3 → 1 2 3 1 2 3 1 2 3, the last three each."""
    present, added = _present_and_added("gradual", lineage, depth)
    return GrowthPlan((*range(present), *range(present - added, present)))


def midas(lineage: Sequence[int], depth: int) -> GrowthPlan:
    """Copy the middle block right after itself: B1 B2 → B1 B1 B2; B1 B2 B3 → B1 B2 B2 B3.

    Blocks have as many layers as are added; of b blocks the ⌈b/2⌉-th is copied.
    """
    present, added = _present_and_added("midas", lineage, depth)
    if present % added:
        raise ConfigurationError(
            f"midas copies a block of {added} layers, but {present} layers are no whole number of "
            "such blocks: let every stage add the first stage's depth"
        )
    blocks = present // added
    end = (blocks + 1) // 2 * added
    return GrowthPlan((*range(end), *range(end - added, present)))


def lidas(lineage: Sequence[int], depth: int) -> GrowthPlan:
    """Copy the middle layers right after themselves: 1 2 3 4 → 1 2 3 2 3 4.

    They are the exact middle where present and added layers are both even or both odd. Elsewhere
    one layer less is left below them than above: of 6 layers the copied three are 2 3 4.
    """
    present, added = _present_and_added("lidas", lineage, depth)
    end = (present - added) // 2 + added
    return GrowthPlan((*range(end), *range(end - added, present)))


def random(lineage: Sequence[int], depth: int) -> GrowthPlan:
    """Put fresh layers where interleave puts clones: the baseline that copies nothing."""
    return GrowthPlan(interleave(lineage, depth).parents, fresh_clones=True)


_OPERATORS: dict[OperatorName, GrowthOperator] = {
    "interleave": interleave,
    "append": append,
    "gradual": gradual,
    "midas": midas,
    "lidas": lidas,
    "random": random,
}


def get_operator(name: OperatorName) -> GrowthOperator:
    """Return the operator of this name.

    Raises:
        ConfigurationError: If there is none.
    """
    if name not in _OPERATORS:
        raise ConfigurationError(
            f"there is no growth operator {name!r}: choose one of {', '.join(_OPERATORS)}"
        )
    return _OPERATORS[name]


def plan_growth(
    operator: GrowthOperator | OperatorName, lineage: Sequence[int], depth: int
) -> GrowthPlan:
    """Return an operator's plan, checked against the depth that is required.

    Args:
        operator: The operator or its name.
        lineage: For every present layer, the index of its ancestor in the first stack;
            ``range(n)`` where nothing has grown yet. ``descend`` carries it through a growth step.
        depth: Layers wanted, more than there are.

    Raises:
        ConfigurationError: If the depth does not grow, or the operator can't serve it.

    Example:
        >>> plan_growth("interleave", range(3), 6).parents
        (0, 0, 1, 1, 2, 2)
    """
    if isinstance(operator, str):
        operator = get_operator(operator)
    if depth <= len(lineage):
        raise ConfigurationError(
            f"a stack of {len(lineage)} layers can't grow to {depth}: stage depths have to increase"
        )
    plan = operator(lineage, depth)
    if (plan.old_depth, plan.depth) != (len(lineage), depth):
        raise ConfigurationError(
            f"the growth operator planned {plan.old_depth} → {plan.depth} layers where "
            f"{len(lineage)} → {depth} were required"
        )
    return plan


def _block_sizes(lineage: Sequence[int]) -> list[int]:
    """Count the layers of each block, bottom first."""
    return [lineage.count(ancestor) for ancestor in range(max(lineage) + 1)]


def _spread(num_blocks: int) -> list[int]:
    """Order blocks, top first, so that the first so many are always spread over the stack.

    Multiples of the golden ratio, taken modulo 1, never gather. The order does not depend on how
    many are taken, so that a block that was larger once need not shrink at the next growth.
    """
    return sorted(
        range(num_blocks), key=lambda block: (num_blocks - 1 - block) * _GOLDEN_RATIO % 1.0
    )


def _present_and_added(name: str, lineage: Sequence[int], depth: int) -> tuple[int, int]:
    """Return the present depth and how many layers are added, at most as many as there are."""
    present, added = len(lineage), depth - len(lineage)
    if added > present:
        raise ConfigurationError(
            f"{name} copies layers once, so it can't grow {present} layers to {depth} in one step: "
            f"give a stage of at most {2 * present} layers"
        )
    return present, added
