"""Agreement between ranks on what only one of them may know."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import distributed


class Agreement:
    """Finds out whether any rank votes yes.

    It communicates between the CPUs, so that no rank waits for its device.
    """

    def __init__(self) -> None:
        self._group: distributed.ProcessGroup | None = None
        self._ready = False

    def any(self, votes: Sequence[bool]) -> list[bool]:
        """Return, for each question, whether any rank votes yes; every rank has to call it.

        Args:
            votes: This rank's votes, one a question.
        """
        if not distributed.is_available() or not distributed.is_initialized():
            return list(votes)
        if not self._ready:
            if distributed.get_backend() != distributed.Backend.GLOO:
                group = distributed.new_group(backend="gloo")
                assert isinstance(group, distributed.ProcessGroup)  # all ranks are members
                self._group = group
            self._ready = True
        counted = torch.tensor(votes, dtype=torch.int32)
        distributed.all_reduce(counted, op=distributed.ReduceOp.MAX, group=self._group)
        return [bool(vote) for vote in counted.tolist()]
