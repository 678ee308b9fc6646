"""What becomes of the optimizer's state at growth, by the names of the parameters it belongs to.

Layers that move change their numbers, and clones come between originals: by position, Adam's
moments would silently fall to other parameters.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch

from interstack.errors import ConfigurationError
from interstack.growth.plan import GrowthPlan

OptimizerStatePolicy = Literal["reset", "carry", "clone"]
"""``reset``: everything begins afresh. ``carry``: what was there before goes on, and clones begin
at zero. ``clone``: clones begin with copies of their parents' state instead."""


def inherit_state(
    old: torch.optim.Optimizer,
    new: torch.optim.Optimizer,
    plan: GrowthPlan,
    layer_prefix: str,
    policy: OptimizerStatePolicy,
) -> None:
    """Hand the state from before a growth (moments, step counts) down to the grown parameters.

    Originals, and what belongs to no layer, take over the very state they had; with ``clone`` their
    clones get copies of it. Everything else begins at zero: with ``reset`` all, with ``carry`` the
    clones, and always a fresh layer, which is nobody's copy.

    Args:
        old: The optimizer from before the growth, which is given up.
        new: The one over the grown module's parameters, still without state.
        plan: The growth.
        layer_prefix: What the names of layers' parameters begin with, before the layer's number.
        policy: Who inherits.

    Raises:
        ConfigurationError: If there is state to match and an optimizer was made without names.
    """
    if policy == "reset":
        return
    states = {name: old.state.get(parameter) for name, parameter in named_parameters(old).items()}
    for name, parameter in named_parameters(new).items():
        parent, is_clone = parent_of(name, plan, layer_prefix)
        state = states.get(parent)
        if not state:  # never stepped, or not trained before
            continue
        if not is_clone:
            new.state[parameter] = state
        elif policy == "clone" and not plan.fresh_clones:
            new.state[parameter] = copy.deepcopy(state)


def named_parameters(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return an optimizer's parameters by name.

    Raises:
        ConfigurationError: If it was made without names.
    """
    parameters: dict[str, torch.Tensor] = {}
    for group in optimizer.param_groups:
        if "param_names" not in group:
            raise ConfigurationError(
                f"growth.optimizer_state matches state by name, but the {type(optimizer).__name__} "
                "was made without names: make it from named_parameters(), or give "
                "growth.optimizer_state: reset"
            )
        parameters |= zip(group["param_names"], group["params"], strict=True)
    return parameters


def parent_of(name: str, plan: GrowthPlan, layer_prefix: str) -> tuple[str, bool]:
    """Return what a parameter's parent was called before the growth, and whether it is a clone."""
    if not name.startswith(layer_prefix):
        return name, False
    number, rest = name.removeprefix(layer_prefix).split(".", maxsplit=1)
    place = int(number)
    return f"{layer_prefix}{plan.parents[place]}.{rest}", plan.is_clone(place)
