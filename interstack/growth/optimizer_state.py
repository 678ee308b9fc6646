"""What becomes of optimizers and learning rate schedulers when layers have grown.

A grown module needs a new optimizer. Growth keeps the originals' ``Parameter`` objects, so state is
matched by them: by position, Adam's moments would silently fall to other parameters.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor, nn

from interstack.growth.plan import GrowthPlan
from interstack.growth.surgery import parent_parameters

OptimizerStatePolicy = Literal["reset", "carry", "clone"]
"""``reset``: everything begins at zero. ``carry``: what was there before continues, and clones
begin at zero. ``clone``: clones begin with copies of their parents' state instead."""

_PER_GROUP: Final = (
    "base_lrs",
    "_last_lr",
    "lr_lambdas",
    "min_lrs",
    "max_lrs",
    "base_momentums",
    "max_momentums",
    "_initial_step_lrs",
)
"""Of a scheduler's state: lists with one entry for each parameter group."""


class Scheduler(Protocol):
    """A learning rate scheduler, torch's or another one."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Take over the state."""


def inherit_optimizer_state(
    old: torch.optim.Optimizer,
    new: torch.optim.Optimizer,
    layers: nn.ModuleList,
    plan: GrowthPlan,
    policy: OptimizerStatePolicy = "carry",
) -> None:
    """Give a new optimizer the state (moments, step counts) from before a growth step.

    Originals, and what belongs to no layer, take over the state they had; with ``clone`` their
    clones get copies of it. Everything else begins at zero: with ``reset`` all, with ``carry`` the
    clones, and always a fresh layer, which is nobody's copy. Names are not needed.

    Args:
        old: The optimizer from before the growth step, which is not used any more.
        new: The one over the grown module's parameters, still without state.
        layers: The layers, grown.
        plan: The growth step.
        policy: Who inherits.

    Example:
        >>> layers = nn.ModuleList([nn.Linear(8, 8)])
        >>> old, plan = torch.optim.AdamW(layers.parameters()), GrowthPlan((0, 0))
        >>> grow_layers(layers, plan)
        >>> new = torch.optim.AdamW(layers.parameters())
        >>> inherit_optimizer_state(old, new, layers, plan, "clone")
    """
    if policy == "reset":
        return
    parents = parent_parameters(layers, plan)
    for group in new.param_groups:
        for parameter in group["params"]:
            is_clone = parameter in parents
            # An original is the very same Parameter before and after, so that its state is found by
            # it; a clone is new, and is looked up by its parent.
            state = old.state.get(parents.get(parameter, parameter))
            if not state:  # never stepped, or not trained before
                continue
            if not is_clone:
                new.state[parameter] = state
            elif policy == "clone" and not plan.fresh_clones:
                new.state[parameter] = copy.deepcopy(state)


def inherit_learning_rate(
    old: torch.optim.Optimizer,
    new: torch.optim.Optimizer,
    layers: nn.ModuleList,
    plan: GrowthPlan,
    schedulers: Iterable[tuple[Scheduler, Scheduler]] = (),
) -> None:
    """Let the learning rate of a new optimizer continue where it was before a growth step.

    Each parameter group follows the old group that its first parameter, or the parent of that, was
    in. Without a scheduler the group takes over the learning rate, with schedulers all options,
    since some of them also set momentum.

    Args:
        old: The optimizer from before the growth step.
        new: The one over the grown module's parameters.
        layers: The layers, grown.
        plan: The growth step.
        schedulers: Pairs of an old scheduler and its new counterpart, which takes over its state.
    """
    # Weight decay, say, may put weights and biases into different groups, and a grown module's
    # groups need not come in the old order: they are matched by what is in them.
    groups = _old_groups(old, new, parent_parameters(layers, plan))
    pairs = list(schedulers)
    for before, after in pairs:
        after.load_state_dict(_regroup(before.state_dict(), groups, len(old.param_groups)))
    for group, index in zip(new.param_groups, groups, strict=True):
        if index is not None:
            options = old.param_groups[index]
            kept = set(options) - {"params", "param_names"} if pairs else {"lr"}
            group.update({name: options[name] for name in options if name in kept})


def _old_groups(
    old: torch.optim.Optimizer, new: torch.optim.Optimizer, parents: dict[Tensor, Tensor]
) -> list[int | None]:
    """Return which old group each new group follows; None if it follows none."""
    index_of = {
        parameter: index
        for index, group in enumerate(old.param_groups)
        for parameter in group["params"]
    }
    groups = []
    for group in new.param_groups:
        origins = (index_of.get(parents.get(each, each)) for each in group["params"])
        groups.append(next((index for index in origins if index is not None), None))
    if len(groups) == len(old.param_groups):  # an empty group, or one that was frozen before
        return [position if index is None else index for position, index in enumerate(groups)]
    return groups


def _regroup(state: dict[str, Any], groups: Sequence[int | None], num_old: int) -> dict[str, Any]:
    """Bring the lists in a scheduler's state that have an entry a group to the new groups."""
    state = copy.deepcopy(state)
    if list(groups) == list(range(num_old)):
        return state
    for name, value in state.items():
        if name == "_schedulers":
            state[name] = [_regroup(each, groups, num_old) for each in value]
        elif name in _PER_GROUP and isinstance(value, list) and len(value) == num_old:
            state[name] = [value[index or 0] for index in groups]
    return state


class LearningRateFactor:
    """A factor of the learning rate that holds during an optimizer's steps alone.

    Schedulers, checkpoints and loggers see the rate without it, so that a scheduler which computes
    a rate from the last one is not misled.
    """

    def __init__(self) -> None:
        self.value = 1.0
        self._plain: list[Any] = []
        self._attached: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Apply the factor to an optimizer's steps from now on."""
        if optimizer not in self._attached:
            self._attached.add(optimizer)
            optimizer.register_step_pre_hook(self._apply)
            optimizer.register_step_post_hook(self._undo)

    def _apply(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._plain = [group["lr"] for group in optimizer.param_groups]
        if self.value != 1.0:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * self.value

    def _undo(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if self.value != 1.0:
            for group, rate in zip(optimizer.param_groups, self._plain, strict=True):
                group["lr"] = rate
