"""Upstreams of probe and superb that compute in another format than float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interstack.errors import PrecisionError
from interstack.evaluation.superb.upstream import TeacherUpstream
from interstack.evaluation.upstreams import PretrainedUpstream, check_at_first_batch
from interstack.models.precision import PrecisionReport
from interstack.models.teacher import Teacher
from tests.models.families import read_speech

CPU = torch.device("cpu")


class Wrong(nn.Module):
    """Gives something else in 16 bits."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return it as it is in float32 alone."""
        return hidden if hidden.dtype == torch.float32 else -hidden


def make_wrong(teacher: Teacher) -> None:
    """Spoil what the second layer's network gives in bfloat16."""
    layers: Any = teacher.body.encoder.layers
    layers[1].feed_forward.output_dropout = Wrong()


@pytest.mark.parametrize("wrong", [False, True])
def test_superbs_upstream_is_checked_on_its_first_batch(
    wrong: bool, teacher_directory: Path
) -> None:
    """Once, on the two shortest waveforms; what it gives is the same as before."""
    upstream = TeacherUpstream(str(teacher_directory)).to(torch.bfloat16)
    waveforms = read_speech(0.6, 0.9, 0.5)
    expected = upstream(waveforms)["hidden_states"]
    if wrong:
        make_wrong(upstream.teacher)
    reports: list[PrecisionReport] = []
    check_at_first_batch(upstream, "its-name", CPU, reports.append)
    if wrong:
        expected_error = r"layers.1.feed_forward.output_dropout of the upstream its-name .*--no-pre"
        with pytest.raises(PrecisionError, match=expected_error):
            upstream(waveforms)
        return
    for _ in range(2):
        found: Sequence[Tensor] = upstream(waveforms)["hidden_states"]
        assert all(map(torch.equal, found, expected))
    (report,) = reports
    assert (report.model, report.format) == ("upstream its-name", "bfloat16")
    assert 0 < report.error < report.bound


def test_an_upstream_in_float32_costs_nothing(teacher_directory: Path) -> None:
    """No hook is set, and none was called."""
    upstream = TeacherUpstream(str(teacher_directory))
    check_at_first_batch(upstream, "its-name", CPU, lambda _: pytest.fail("it was checked"))
    upstream(read_speech(0.5))
    assert not upstream._forward_pre_hooks


def test_a_probes_upstream_is_checked_on_its_first_clip(
    teacher_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless the check is off."""
    (clip,) = read_speech(0.6)
    upstream = PretrainedUpstream(str(teacher_directory), "its-name")
    upstream._model.to(torch.bfloat16)
    with caplog.at_level("INFO", "interstack"):
        upstream.hidden_states(clip)
        upstream.hidden_states(clip)
    (line,) = [each for each in caplog.messages if "its-name" in each]
    assert "bfloat16" in line
    for checks in (True, False):
        spoilt = PretrainedUpstream(str(teacher_directory), "its-name", precision_check=checks)
        spoilt._model.to(torch.bfloat16)
        make_wrong(spoilt._model)
        if checks:
            with pytest.raises(PrecisionError, match="output_dropout of the upstream its-name"):
                spoilt.hidden_states(clip)
        else:
            spoilt.hidden_states(clip)
