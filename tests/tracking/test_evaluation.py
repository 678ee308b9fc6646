"""Measuring leaves no trace."""

from __future__ import annotations

from torch import nn

from interstack.tracking.evaluation import evaluating


def test_every_submodule_gets_its_own_mode_back() -> None:
    """A front end in eval mode stays there, although the rest trains."""
    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    module[1].eval()
    with evaluating(module):
        assert not any(each.training for each in module.modules())
    assert module.training
    assert module[0].training
    assert not module[1].training
    assert not module[1][0].training
