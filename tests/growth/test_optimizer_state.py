"""The optimizer's state at growth: who keeps it, who copies it, who begins at zero."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from interstack.distillation.module import Distillation
from interstack.distillation.optimizer import OptimizerConfig, OptimizerKind
from interstack.growth.operators import OperatorName
from interstack.growth.optimizer_state import OptimizerStatePolicy, inherit_optimizer_state
from interstack.growth.plan import GrowthPlan
from tests.distillation.small_runs import fit, make_module, make_trainer, training_batches
from tests.growth.growing_runs import Saver, equal_states, named_state, train

LAYERS = "student.model.encoder.layers."
GROWN: dict[OperatorName, str] = {
    "interleave": "1 2 2' 3 4 4'",
    "random": "1 2 *  3 4 *",
    "append": "1 2 3 4 1' 2' 3' 4'",
    "gradual": "1 2 3 4 3' 4'",
    "midas": "1 2 1' 2' 3 4",
    "lidas": "1 2 3 2' 3' 4",
}
"""Every operator's second growth, from 4 layers: a prime is a clone, a star a fresh layer."""


def origin(name: str, stack: str) -> tuple[str, str]:
    """Whose state a parameter of the grown stack could have, and what it is: "", "'" or "*"."""
    if not name.startswith(LAYERS):
        return name, ""
    place, rest = name.removeprefix(LAYERS).split(".", maxsplit=1)
    written = stack.split()[int(place)]
    if written == "*":
        return "", "*"
    return f"{LAYERS}{int(written[0]) - 1}.{rest}", written[1:]


@pytest.mark.parametrize("policy", ["reset", "carry", "clone"])
@pytest.mark.parametrize("operator", GROWN)
def test_state_follows_its_parameter_through_a_growth(
    operator: OperatorName, policy: OptimizerStatePolicy, teacher_directory: Path
) -> None:
    """Bitwise and by name, wherever the operator puts layers; whatever else begins at zero."""
    stack = GROWN[operator]
    module, witness = train(
        teacher_directory,
        depths=(2, 4, len(stack.split())),
        growth={"operator": operator, "optimizer_state": policy},
        max_steps=6,
    )
    before, after, names = witness.before[1], witness.after[1], witness.names[1]
    queries = [before[name]["exp_avg"] for name in before if name.endswith("q_proj.weight")]
    assert not any(torch.equal(one, two) for one, two in combinations(queries, 2))
    assert names == [name for name, each in module.named_parameters() if each.requires_grad]
    for name in names:
        parent, kind = origin(name, stack)
        if policy == "reset" or kind == "*" or (kind == "'" and policy == "carry"):
            assert name not in after
        else:
            assert equal_states(after[name], before[parent])


@pytest.mark.parametrize(
    ("policy", "steps"),
    [
        ("reset", ["2", "2", "2", "2", "2", "2"]),
        ("carry", ["6", "4", "2", "6", "4", "2"]),
        ("clone", ["6", "6", "6", "6", "6", "6"]),
    ],
)
def test_adam_counts_each_layers_own_steps(
    policy: OptimizerStatePolicy, steps: list[str], teacher_directory: Path
) -> None:
    """Two steps a stage, interleaved: 1 → 1 1′ → 1 1′ 1″. Copied moments keep their bias's age."""
    module, _ = train(
        teacher_directory, depths=(2, 4, 6), growth={"optimizer_state": policy}, max_steps=6
    )
    counts: dict[str, set[str]] = {}
    for name, state in named_state(module.trainer.optimizers[0]).items():
        layer = name.removeprefix(LAYERS).split(".")[0] if name.startswith(LAYERS) else "rest"
        counts.setdefault(layer, set()).add(f"{int(state['step'])}")
    rest = {"2"} if policy == "reset" else {"6"}
    assert counts == {"rest": rest} | {str(place): {step} for place, step in enumerate(steps)}


def test_copied_state_goes_its_own_way(teacher_directory: Path) -> None:
    """A clone's moments are its own: only its own gradients change them."""
    module, witness = train(teacher_directory, growth={"optimizer_state": "clone"}, max_steps=6)
    end = named_state(module.trainer.optimizers[0])
    query = LAYERS + "{}.attention.q_proj.weight"
    parent, clone = query.format(0), query.format(1)
    assert equal_states(witness.after[0][parent], witness.after[0][clone])
    assert not torch.equal(end[parent]["exp_avg"], end[clone]["exp_avg"])


@pytest.mark.parametrize("policy", ["carry", "clone"])
@pytest.mark.parametrize("cut", [2, 4, 6], ids=["before growth", "at growth", "after growth"])
def test_state_comes_back_from_a_checkpoint(
    cut: int, policy: OptimizerStatePolicy, teacher_directory: Path, tmp_path: Path
) -> None:
    """A cut run ends with the weights and moments of one that was never cut, to the bit."""
    growth = {"optimizer_state": policy}
    module, _ = train(teacher_directory, Saver(tmp_path), growth=growth, max_steps=8)
    torch.manual_seed(5)
    other, _ = train(
        teacher_directory, growth=growth, checkpoint=tmp_path / f"{cut}.ckpt", max_steps=8
    )
    mine, theirs = (named_state(each.trainer.optimizers[0]) for each in (module, other))
    assert mine.keys() == theirs.keys()
    assert all(equal_states(mine[name], theirs[name]) for name in mine)
    weights, same = module.state_dict(), other.state_dict()
    assert all(torch.equal(weights[name], same[name]) for name in weights)


@pytest.mark.parametrize(
    ("first", "last", "steps"),
    [(2.0**3, 2.0**6, {6, 4, 2}), (2.0**40, 2.0**34, set())],
    ids=["every step", "none but overflows"],
)
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_growth_goes_on_under_a_gradient_scaler(
    kind: OptimizerKind, first: float, last: float, steps: set[int], teacher_directory: Path
) -> None:
    """Two growths in half precision: the scale doubles every other step, or halves at each.

    A step that overflows leaves no state behind but zeros, neither moments nor momentum.
    """
    scaler = torch.amp.GradScaler("cpu", init_scale=first, growth_interval=2)
    module, _ = train(
        teacher_directory,
        module=make_module(teacher_directory, optimizer=OptimizerConfig(kind=kind)),
        depths=(2, 3, 4),
        growth={"optimizer_state": "carry"},
        max_steps=6,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
    )
    assert (module.depth, scaler.get_scale()) == (4, last)
    states = named_state(module.trainer.optimizers[0]).values()
    assert {int(state["step"]) for state in states if "step" in state} == steps
    momenta = [state.get("exp_avg", state.get("momentum_buffer")) for state in states]
    assert all(each is not None and each.dtype == torch.float32 for each in momenta)
    assert all(bool(each.any()) == bool(steps) for each in momenta if each is not None)


def test_layers_are_found_by_their_prefix(teacher_directory: Path) -> None:
    """The module says what its layers' names begin with."""
    module = make_module(teacher_directory)
    module.setup("fit")
    layers = dict(module.student.layers.named_parameters())
    named = dict(module.named_parameters())
    assert all(named[module.layer_prefix + name] is each for name, each in layers.items())


# Without a run ----------------------------------------------------------------------------------


def adam(stack: nn.Module) -> torch.optim.AdamW:
    """What is trained of a stack, in an optimizer that knows its names."""
    return torch.optim.AdamW([(n, p) for n, p in stack.named_parameters() if p.requires_grad])


def stepped(stack: nn.Module) -> torch.optim.AdamW:
    """Give every parameter a gradient of its own, and step once."""
    optimizer = adam(stack)
    for number, parameter in enumerate(stack.parameters()):
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 1.0 + number)
    optimizer.step()
    return optimizer


def test_frozen_parameters_have_no_state_and_shift_nobody_elses() -> None:
    """They are in no optimizer, so that by position all after them would be swapped."""
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    one.weight.requires_grad_(False)
    old = stepped(nn.Sequential(one, two))
    fresh = nn.Linear(2, 2)
    fresh.bias.requires_grad_(False)
    new = adam(nn.Sequential(one, fresh, two))
    before = named_state(old)
    grown = nn.ModuleList([one, fresh, two])
    inherit_optimizer_state(old, new, grown, GrowthPlan((0, 0, 1)), "clone")
    after = named_state(new)
    assert after.keys() == {"0.bias", "2.weight", "2.bias"}
    assert equal_states(after["0.bias"], before["0.bias"])
    assert equal_states(after["2.weight"], before["1.weight"])
    assert equal_states(after["2.bias"], before["1.bias"])


def test_what_was_never_stepped_begins_at_zero() -> None:
    """A growth before the first step has nothing to hand down."""
    stack = nn.ModuleList([nn.Linear(2, 2)])
    grown = nn.ModuleList([*stack, nn.Linear(2, 2)])
    new = adam(grown)
    inherit_optimizer_state(adam(stack), new, grown, GrowthPlan((0, 0)), "clone")
    assert named_state(new) == {}


class Nameless(Distillation):
    """A module whose optimizer was given parameters without names."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As most code makes one."""
        return torch.optim.AdamW(self.parameters())


@pytest.mark.parametrize("policy", ["reset", "carry", "clone"])
def test_an_optimizer_without_names_fares_like_one_with_names(
    policy: OptimizerStatePolicy, teacher_directory: Path
) -> None:
    """State follows the parameters themselves; the order they are given in is that of names."""
    growth = {"optimizer_state": policy}
    like = make_module(teacher_directory)
    ends = []
    for kind in (Distillation, Nameless):
        torch.manual_seed(3)
        module = kind(like.teacher_config, like.student_config, initial_depth=2)
        trainer = make_trainer(growth=growth, max_steps=4)
        fit(trainer, module, training_batches(2))
        (group,) = trainer.optimizers[0].param_groups
        states = [trainer.optimizers[0].state[each] for each in group["params"]]
        ends.append([each["step"].item() for each in states])
        assert len(group["params"]) == len(list(module.parameters()))
    assert ends[0] == ends[1]
    assert set(ends[0]) == {"reset": {2}, "carry": {2, 4}, "clone": {4}}[policy]
