"""The functions of the library: growing a list, and what an optimizer inherits."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import interstack
from interstack import (
    GrowthPlan,
    grow_layers,
    inherit_learning_rate,
    inherit_optimizer_state,
)
from interstack.errors import ConfigurationError
from interstack.growth.optimizer_state import OptimizerStatePolicy

PLAN = GrowthPlan((0, 0, 1, 1))


def stack() -> nn.ModuleList:
    """Two layers of attention, whose parameters lie in submodules of several kinds."""
    return nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 8, 0.0) for _ in range(2))


def stepped(layers: nn.ModuleList, *, named: bool) -> torch.optim.AdamW:
    """An optimizer with names or without, after one step with unlike gradients."""
    optimizer = make(layers, named=named)
    for number, parameter in enumerate(layers.parameters()):
        parameter.grad = torch.full_like(parameter, 1.0 + number)
    optimizer.step()
    return optimizer


def make(layers: nn.ModuleList, *, named: bool) -> torch.optim.AdamW:
    """A new optimizer."""
    return torch.optim.AdamW(layers.named_parameters() if named else layers.parameters())


@pytest.mark.parametrize("names", [(True, True), (False, False), (True, False)])
@pytest.mark.parametrize("policy", ["reset", "carry", "clone"])
def test_state_is_inherited_with_names_or_without(
    policy: OptimizerStatePolicy, names: tuple[bool, bool]
) -> None:
    """Originals keep theirs, clones copy it or begin at zero."""
    layers = stack()
    old = stepped(layers, named=names[0])
    parents = list(layers)
    grow_layers(layers, PLAN)
    assert list(layers)[::2] == parents
    new = make(layers, named=names[1])
    inherit_optimizer_state(old, new, layers, PLAN, policy)
    for place, layer in enumerate(layers):
        of_parent = dict(parents[place // 2].named_parameters())
        for name, parameter in layer.named_parameters():
            state, expected = new.state.get(parameter), old.state[of_parent[name]]
            if policy == "reset" or (policy == "carry" and place % 2):
                assert not state
            else:
                assert state is not None
                assert torch.equal(state["exp_avg"], expected["exp_avg"])
                assert (state is expected) == (place % 2 == 0)


def test_groups_by_layer_follow_the_layers() -> None:
    """One group a layer, each with its rate: a clone's goes on as its parent's, also later on."""

    def by_layer(layers: nn.ModuleList) -> torch.optim.SGD:
        groups = [{"params": list(each.parameters()), "lr": 0.1} for each in layers]
        return torch.optim.SGD(groups)

    layers = stack()
    old = by_layer(layers)
    before = lr_scheduler.LambdaLR(old, [lambda step: 0.5**step, lambda step: 0.9**step])
    old.step()
    before.step()
    grow_layers(layers, PLAN)
    new = by_layer(layers)
    after = lr_scheduler.LambdaLR(
        new, [*[lambda step: 0.5**step] * 2, *[lambda step: 0.9**step] * 2]
    )
    inherit_learning_rate(old, new, layers, PLAN, [(before, after)])
    rates = [group["lr"] for group in new.param_groups]
    assert rates == pytest.approx([0.05, 0.05, 0.09, 0.09])
    new.step()
    after.step()
    rates = [group["lr"] for group in new.param_groups]
    assert rates == pytest.approx([0.025, 0.025, 0.081, 0.081])


def test_fresh_layers_are_initialised_as_their_constructors_do() -> None:
    """Biases of attention are zero, which a Linear's own reset would not leave."""
    layers = stack()
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.fill_(7.0)
    layers.eval()
    grow_layers(layers, GrowthPlan((0, 0, 1), fresh_clones=True))
    attention: Any = layers[1].self_attn
    assert not layers[1].training
    assert torch.equal(attention.out_proj.bias, torch.zeros(4))
    assert torch.equal(layers[1].norm1.weight, torch.ones(4))  # type: ignore[union-attr,arg-type]
    assert all((each == 7.0).all() for place in (0, 2) for each in layers[place].parameters())
    assert not any((each == 7.0).any() for each in layers[1].parameters())


def test_fresh_layers_can_be_the_users() -> None:
    """What makes them gets the layer that they follow."""
    layers = stack()
    asked: list[nn.Module] = []

    def fresh_layer(like: nn.Module) -> nn.Module:
        asked.append(like)
        return nn.TransformerEncoderLayer(4, 2, 8, 0.0)

    grow_layers(layers, GrowthPlan((0, 1, 1), fresh_clones=True), fresh_layer=fresh_layer)
    assert asked == [layers[1]]


def test_a_plan_for_another_depth_is_refused() -> None:
    """The list stays what it was."""
    layers = stack()
    with pytest.raises(ConfigurationError, match="a plan for 3 layers can't grow 2"):
        grow_layers(layers, GrowthPlan((0, 1, 2, 2)))
    assert len(layers) == 2


def test_imports_are_light() -> None:
    """The package alone, then functions, then transformers' callback: nothing that is not used."""
    heavy = "{'torch', 'lightning', 'transformers', 'wandb'}"
    script = f"""
import sys
import interstack
assert not {heavy} & {{*sys.modules}}, {heavy} & {{*sys.modules}}
from interstack import GrowthPlan, grow_layers, grow_on_load, inherit_optimizer_state
from interstack import make_schedule, plan_growth
assert not ({heavy} - {{'torch'}}) & {{*sys.modules}}
from interstack import StackingTrainerCallback, Student
assert 'lightning' not in sys.modules and 'wandb' not in sys.modules
from interstack import InterleavedStacking
assert 'lightning' in sys.modules and 'wandb' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_public_name_is_there() -> None:
    """And no other."""
    assert {*interstack.__all__} <= {*dir(interstack)}
    for name in interstack.__all__:
        assert getattr(interstack, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'braid'"):
        interstack.braid  # noqa: B018
