"""Muon for matrices and AdamW for the rest, as one optimizer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from interstack.distillation import muon
from interstack.distillation.muon import MuonAdamW, newton_schulz_flops, orthogonalise
from interstack.distillation.optimizer import OptimizerConfig, make_optimizer
from interstack.errors import ConfigurationError
from interstack.growth.optimizer_state import OptimizerStatePolicy
from interstack.tracking.flops import optimizer_flops
from tests.distillation.small_runs import make_module
from tests.growth.growing_runs import Saver, equal_states, train

LAYERS = "student.model.encoder.layers."
MUON = OptimizerConfig(learning_rate=3e-3, weight_decay=0.1, kind="muon", warmup=0.0)


def drawn(*shapes: Sequence[int]) -> list[nn.Parameter]:
    """Random parameters, the same ones each time."""
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]


def set_gradients(parameters: Sequence[nn.Parameter], seed: int) -> None:
    """Random gradients, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_it_steps_as_torchs_muon_and_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the rounding of bfloat16, in which torch iterates: a hundredth of a step; any shape."""
    monkeypatch.setattr(muon, "newton_schulz_dtype", lambda _: torch.bfloat16)
    shapes = [(24, 16), (16, 24), (16, 16), (16, 16), (5,), (2, 3, 4)]
    mine, theirs = drawn(*shapes), drawn(*shapes)
    optimizer = make_optimizer(
        [(f"layers.{number}", each) for number, each in enumerate(mine)], MUON, "layers."
    )
    decay = {"lr": MUON.learning_rate, "weight_decay": MUON.weight_decay}
    matrices = torch.optim.Muon(theirs[:4], momentum=0.95, adjust_lr_fn="match_rms_adamw", **decay)
    others = torch.optim.AdamW(theirs[4:], betas=MUON.betas, eps=MUON.eps, fused=True, **decay)
    for step in range(4):
        set_gradients(mine, step)
        set_gradients(theirs, step)
        for each in (optimizer, matrices, others):
            each.step()
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0.01 * MUON.learning_rate)


def test_an_update_has_singular_values_near_one() -> None:
    """In every direction that the gradient has, whatever its size."""
    for scale in (1e-4, 1.0, 1e4):
        directions = orthogonalise(scale * torch.stack([each.detach() for each in drawn((8, 20))]))
        values = torch.linalg.svdvals(directions[0])
        assert 0.6 < values.min() < values.max() < 1.3


def test_a_parameter_without_a_gradient_stays_as_it_is() -> None:
    """Neither decayed nor given a momentum."""
    idle, busy, bias = drawn((4, 4), (4, 4), (4,))
    before = idle.detach().clone()
    optimizer = make_optimizer([("idle", idle), ("busy", busy), ("bias", bias)], MUON)
    set_gradients([busy], 0)
    optimizer.step()
    assert torch.equal(idle, before)
    assert idle not in optimizer.state
    assert set(optimizer.state[busy]) == {"momentum_buffer"}


def test_a_step_can_be_held_back_on_the_device() -> None:
    """Neither weights nor state change, whatever the gradients are."""
    parameters = drawn((4, 6), (6,))
    optimizer = make_optimizer(zip(("matrix", "bias"), parameters, strict=True), MUON)
    assert isinstance(optimizer, MuonAdamW)
    set_gradients(parameters, 0)
    optimizer.step()
    before = copy.deepcopy((parameters, optimizer.state_dict()["state"]))
    for each in parameters:
        each.grad = torch.full_like(each, float("nan"))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    after = (parameters, optimizer.state_dict()["state"])
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    optimizer.found_inf = torch.tensor(0.0)
    set_gradients(parameters, 1)
    optimizer.step()
    assert not torch.equal(parameters[0], before[0][0])
    assert not torch.equal(parameters[1], before[0][1])


def test_the_matrices_of_the_encoders_layers_are_muons(teacher_directory: Path) -> None:
    """All of them, and nothing else: heads, projection and convolutions are AdamW's."""
    module = make_module(teacher_directory, optimizer=MUON)
    module, _ = train(teacher_directory, module=module, max_steps=2)
    optimizer = module.trainer.optimizers[0]
    matrices, others = (group["param_names"] for group in optimizer.param_groups)
    expected = [
        name
        for name, each in module.named_parameters()
        if name.startswith(LAYERS) and each.ndim == 2
    ]
    assert matrices == expected
    assert len(matrices) == 4 * 6
    operations = sum(
        newton_schulz_flops(*each.shape) for each in optimizer.param_groups[0]["params"]
    )
    assert optimizer_flops(module, 4) == operations
    assert optimizer_flops(make_module(teacher_directory), 4) == 0
    trained = {name for name, each in module.named_parameters() if each.requires_grad}
    assert set(matrices) | set(others) == trained


@pytest.mark.parametrize("policy", ["reset", "carry", "clone"])
def test_momentum_follows_its_matrix_through_a_growth_step(
    policy: OptimizerStatePolicy, teacher_directory: Path
) -> None:
    """Of 1 1' 2 2': originals keep theirs, clones copy it with ``clone`` alone."""
    module = make_module(teacher_directory, optimizer=MUON)
    growth = {"optimizer_state": policy}
    module, witness = train(teacher_directory, module=module, growth=growth, max_steps=4)
    before, after = witness.before[0], witness.after[0]
    momenta = [state["momentum_buffer"] for state in before.values() if len(state) == 1]
    assert not any(torch.equal(one, two) for one, two in combinations(momenta[:4], 2))
    for layer, parent in enumerate((0, 0, 1, 1)):
        name, old = f"{LAYERS}{layer}.attention.q_proj.weight", f"{LAYERS}{parent}"
        if policy == "reset" or (policy == "carry" and layer % 2):
            assert name not in after
        else:
            assert equal_states(after[name], before[f"{old}.attention.q_proj.weight"])


@pytest.mark.parametrize("policy", ["reset", "carry", "clone"])
def test_a_run_resumes_bitwise_before_and_after_its_growth_step(
    policy: OptimizerStatePolicy, teacher_directory: Path, tmp_path: Path
) -> None:
    """Momenta, moments and learning rates come back from the checkpoint, amid a wsd's decay too."""
    growth = {"optimizer_state": policy}
    optimizer = replace(MUON, decay="wsd", decay_share=0.5)
    module = make_module(teacher_directory, optimizer=optimizer)
    whole, _ = train(teacher_directory, Saver(tmp_path), module=module, growth=growth, max_steps=6)
    for step in (2, 4):
        module = make_module(teacher_directory, optimizer=optimizer)
        checkpoint = tmp_path / f"{step}.ckpt"
        resumed, _ = train(
            teacher_directory, module=module, growth=growth, max_steps=6, checkpoint=checkpoint
        )
        assert equal_states(whole.state_dict(), resumed.state_dict())


class Clipped(L.Callback):
    """Notes the norm of all gradients as the optimizer got them."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        """Gradients are cleared before the next step alone."""
        gradients = [
            each.grad.flatten()
            for group in trainer.optimizers[0].param_groups
            for each in group["params"]
            if each.grad is not None
        ]
        self.norms.append(float(torch.cat(gradients).norm()))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_of_both_groups_are_clipped_together(
    precision: str, teacher_directory: Path
) -> None:
    """Across a growth step; weights and state stay in float32 whatever the forward pass is in."""
    clipped = Clipped()
    module = make_module(teacher_directory, optimizer=MUON)
    module, _ = train(
        teacher_directory,
        clipped,
        module=module,
        max_steps=4,
        precision=precision,
        gradient_clip_val=1e-3,
    )
    assert clipped.norms == pytest.approx([1e-3] * 4, rel=1e-4)
    assert module.depth == 4
    state = module.trainer.optimizers[0].state
    tensors = [each for states in state.values() for each in states.values()]
    tensors += module.student.state_dict().values()
    assert {each.dtype for each in tensors if each.is_floating_point()} == {torch.float32}
    assert all(bool(each.isfinite().all()) for each in tensors)


def test_the_state_of_another_optimizer_is_refused() -> None:
    """AdamW has no momentum that Muon could go on with."""
    parameters = drawn((4, 4), (4,))
    named = list(zip(("matrix", "bias"), parameters, strict=True))
    adamw = make_optimizer(named, OptimizerConfig())
    with pytest.raises(ConfigurationError, match=r"groups: 1 for 2\): resume with the settings"):
        make_optimizer(named, MUON).load_state_dict(adamw.state_dict())


def test_muon_takes_matrices_alone() -> None:
    """Anything else is refused by its name."""
    (bias,) = drawn((4,))
    with pytest.raises(ValueError, match="takes matrices, but bias has 1 dimensions"):
        MuonAdamW(
            [("bias", bias)], [], lr=1.0, momentum=0.9, weight_decay=0.0, betas=(0.9, 0.9), eps=1.0
        )
