"""Linear CKA of representations."""

from __future__ import annotations

import pytest
import torch

from interstack.tracking.layer_similarity import linear_cka


def test_cka_knows_neither_rotation_nor_scale_nor_offset() -> None:
    """And tells what has nothing to do with each other, and what is half the same."""
    torch.manual_seed(0)
    states = torch.randn(4000, 6)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6))
    same = 3.0 * states @ rotation + 5.0
    other = torch.randn(4000, 9)
    half = torch.cat([states[:, :3], torch.randn(4000, 3)], dim=1)
    ((to_same, to_other, to_half),) = linear_cka([states], [same, other, half]).tolist()
    assert to_same == pytest.approx(1.0, abs=1e-5)
    assert to_other < 0.01
    assert to_half == pytest.approx(0.5, abs=0.03)


def test_cka_is_the_textbooks_formula() -> None:
    """By Gram matrices, as its other form has it."""
    torch.manual_seed(1)
    x, y = torch.randn(50, 4, dtype=torch.float64), torch.randn(50, 7, dtype=torch.float64)
    grams = [(each - each.mean(0)) @ (each - each.mean(0)).T for each in (x, y)]
    expected = (grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm())
    torch.testing.assert_close(linear_cka([x], [y])[0, 0], expected)


def test_a_constant_representation_has_no_similarity() -> None:
    """Not a number would be no answer."""
    constant = torch.ones(10, 3)
    assert linear_cka([constant], [torch.randn(10, 3), constant]).tolist() == [[0.0, 0.0]]
