"""Measuring leaves no trace."""

from __future__ import annotations

from torch import nn

from interstack.models.precision import evaluating


def test_every_submodule_gets_its_own_mode_back() -> None:
    """A front end in eval mode stays there, although the rest trains."""
    frozen = nn.Sequential(nn.Dropout())
    module = nn.Sequential(nn.Dropout(), frozen)
    frozen.eval()
    with evaluating(module):
        assert not any(each.training for each in module.modules())
    assert [each.training for each in module.modules()] == [True, True, False, False]
