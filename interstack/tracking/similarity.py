"""How alike hidden states are: linear centred kernel alignment of layers, on the same frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def linear_cka(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the linear CKA of every pair of representations.

    ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) in Frobenius norms, of X and Y with each channel's mean taken off
    (Kornblith et al., arXiv 1905.00414, eq. 3 and section 3). 1 for representations that are the
    same up to rotation and scale, 0 where no channel of one correlates with any of the other.

    Args:
        first: Representations (frames, width); widths may differ, frames not.
        second: The same.

    Returns:
        (len(first), len(second)) float64.
    """
    left, right = ([_centred(each) for each in states] for states in (first, second))
    left_norms, right_norms = ([_norm(each, each) for each in states] for states in (left, right))
    rows = [
        torch.stack([_norm(x, y).square() for y in right]) / (norm * torch.stack(right_norms))
        for x, norm in zip(left, left_norms, strict=True)
    ]
    # a representation that is the same at every frame is like none
    return torch.nan_to_num(torch.stack(rows), nan=0.0)


def _centred(states: Tensor) -> Tensor:
    exact = states.double()
    return exact - exact.mean(0)


def _norm(x: Tensor, y: Tensor) -> Tensor:
    """Return ‖YᵀX‖."""
    norm: Tensor = torch.linalg.matrix_norm(y.T @ x)
    return norm
