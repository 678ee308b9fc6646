"""Muon for the encoder's matrices and AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) takes a step of equal size in every
direction of a matrix: its momentum is orthogonalised by a Newton–Schulz iteration. With the scale
``match_rms_adamw`` (Moonshot, arXiv 2502.16982) an update is as large as AdamW's, so that both
share learning rate and weight decay.

torch.optim.Muon computes the iteration in bfloat16 on every device, which takes ten times as long
on a CPU without native bfloat16, and its steps can't be held back on the device (``found_inf``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn

NamedParameters = Iterable[tuple[str, nn.Parameter]]

NEWTON_SCHULZ_STEPS: Final = 5
_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
"""Of the quintic whose slope at zero is steepest; singular values end between 0.7 and 1.2."""
_EPS: Final = 1e-7


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer with two groups of parameters: matrices under Muon, the others under AdamW.

    As with torch's fused AdamW, a step changes neither weights nor state where the attribute
    ``found_inf`` is a tensor that holds 1.

    Args:
        matrices: Parameters of two dimensions, with their names.
        others: All other parameters, with their names.
        lr: Learning rate of both groups.
        momentum: Decay rate of Muon's momentum, which is Nesterov's.
        weight_decay: Decoupled weight decay of both groups.
        betas: Decay rates of AdamW's moments.
        eps: Added to the root of AdamW's second moment.

    Raises:
        ValueError: If a matrix has another number of dimensions than two.
    """

    found_inf: Tensor | None = None
    _step_supports_amp_scaling = False
    """Lightning may clip gradients in mixed precision: the scaler has unscaled them."""

    def __init__(
        self,
        matrices: NamedParameters,
        others: NamedParameters,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        matrices, others = list(matrices), list(others)
        for name, parameter in matrices:
            if parameter.ndim != 2:
                raise ValueError(f"Muon takes matrices, but {name} has {parameter.ndim} dimensions")
        defaults = {"lr": lr, "weight_decay": weight_decay, "fused": True}
        self._adamw = torch.optim.AdamW(
            [{"params": others}], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
        )
        muon_group = {"params": matrices, "momentum": momentum}
        super().__init__([muon_group, *self._adamw.param_groups], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401, the closure's
        """Update all parameters that have a gradient.

        Args:
            closure: Computes the loss again; Lightning runs the whole training step in it.

        Returns:
            What the closure returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices, others = self.param_groups
        self._muon_step(matrices)
        # load_state_dict and growth put new groups and a new state in place
        self._adamw.param_groups, self._adamw.state = [others], self.state
        adamw: Any = self._adamw
        adamw.found_inf = self.found_inf
        self._adamw.step()
        return loss

    def _muon_step(self, group: dict[str, Any]) -> None:
        """Update the matrices, those of one shape at once."""
        by_shape: dict[tuple[torch.Size, torch.device], list[nn.Parameter]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape, parameter.device].append(parameter)
        for parameters in by_shape.values():
            self._update(parameters, group)

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Update matrices of one shape.

        Args:
            parameters: The matrices, (rows, columns) each.
            group: Their settings.
        """
        momentum, lr = group["momentum"], group["lr"]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        gradients = torch.stack([each.grad for each in parameters if each.grad is not None])
        buffers = torch.stack([self.state[each]["momentum_buffer"] for each in parameters])
        weights = torch.stack([each.detach() for each in parameters])
        new_buffers = buffers.lerp(gradients, 1 - momentum)
        directions = orthogonalise(gradients.lerp(new_buffers, momentum))
        scale = 0.2 * max(parameters[0].shape) ** 0.5  # the root mean square of AdamW's updates
        new_weights = weights * (1 - lr * group["weight_decay"]) - directions * (lr * scale)
        if self.found_inf is not None:
            held_back = self.found_inf.to(torch.bool)
            new_buffers = torch.where(held_back, buffers, new_buffers)
            new_weights = torch.where(held_back, weights, new_weights)
        for index, parameter in enumerate(parameters):
            self.state[parameter]["momentum_buffer"].copy_(new_buffers[index])
            parameter.copy_(new_weights[index])


def orthogonalise(matrices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return matrices with the same singular vectors, and singular values near 1.

    Args:
        matrices: (batch, rows, columns).
        dtype: Number format of the iteration; None: the device's ``newton_schulz_dtype``.

    Returns:
        (batch, rows, columns) in the number format of the input.
    """
    a, b, c = _COEFFICIENTS
    rows, columns = matrices.shape[-2:]
    directions = matrices.to(dtype or newton_schulz_dtype(matrices.device))
    if rows > columns:  # the products are of the shorter side
        directions = directions.mT
    norms = torch.linalg.matrix_norm(directions, keepdim=True)
    directions = directions / norms.clamp(min=_EPS)  # no singular value above 1
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = directions @ directions.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        directions = torch.baddbmm(directions, polynomial, directions, beta=a)
    if rows > columns:
        directions = directions.mT
    return directions.to(matrices.dtype)


def newton_schulz_flops(rows: int, columns: int) -> float:
    """Return the floating-point operations of ``orthogonalise`` on one matrix, in all iterations.

    Each has two products of the short side's square with the long one, and one of two squares.
    """
    short, long = sorted((rows, columns))
    return float(NEWTON_SCHULZ_STEPS * (4 * short * short * long + 2 * short**3))


def newton_schulz_dtype(device: torch.device) -> torch.dtype:
    """Return the number format in which a device iterates fastest.

    The iteration bears bfloat16 everywhere. A CPU that has no instructions for it is more than ten
    times slower in it than in float32.
    """
    if device.type != "cpu" or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32
