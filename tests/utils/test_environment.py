"""What a measured figure depends on is recorded with it."""

from __future__ import annotations

import subprocess

import torch

from interstack.utils.environment import describe_environment
from tests import REPOSITORY


def test_the_commit_of_a_checkout_is_recorded() -> None:
    """Marked where files differ from it; an installed package has none."""
    found = describe_environment(torch.device("cpu"), "32-true").get("commit")
    if not (REPOSITORY / ".git").exists():
        assert found is None
        return
    head = ["git", "rev-parse", "--short=12", "HEAD"]
    done = subprocess.run(head, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert found is not None
    assert found.removesuffix("-dirty") == done.stdout.strip()
