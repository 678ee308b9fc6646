"""Export of the student as an ONNX graph for audio of any length."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import HubertModel

from interstack.constants import SAMPLE_RATE
from interstack.errors import ConfigurationError
from interstack.models.front_end import receptive_field
from interstack.models.precision import (
    BOUNDS,
    PrecisionReport,
    evaluating,
    relative_error,
    report_errors,
)
from interstack.models.pretrained import bake_weight_norm
from interstack.models.student import Student

log = logging.getLogger(__name__)

ONNX_FILE: Final = "model.onnx"
OPSET: Final = 18
_EXAMPLE_SECONDS: Final = 1.0


class _HiddenStates(nn.Module):
    """Maps waveforms of one length to all hidden states, normalisation included."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        # No deep copy: it would share the class whose weight norm is folded here.
        with torch.random.fork_rng(devices=[]):
            self.model = HubertModel(copy.deepcopy(student.config))
        self.model.load_state_dict(student.model.state_dict())
        self.normalises_waveform = student.normalises_waveform
        bake_weight_norm(self.model)
        self.eval()

    def forward(self, waveforms: Tensor) -> Tensor:
        if self.normalises_waveform:
            variance, mean = torch.var_mean(waveforms, dim=1, correction=0, keepdim=True)
            waveforms = (waveforms - mean) / (variance + 1e-7).sqrt()
        return torch.stack(self.model(waveforms, output_hidden_states=True).hidden_states)


def export_onnx(student: Student, directory: Path) -> Path:
    """Write ``model.onnx``.

    Its input is ``waveforms``, (batch, num_samples) float32 at 16 kHz in [-1, 1], all of one
    length; its output ``hidden_states``, (depth + 1, batch, frames, width), the last of which is
    the encoder's output. Batch and length are free, from one frame on. The graph normalises
    waveforms if the student requires it.

    Args:
        student: The student, at any depth.
        directory: Directory of the file.

    Raises:
        ConfigurationError: If the packages for it are not installed.
    """
    try:
        import onnxscript  # noqa: F401, torch's exporter imports it late, with a less plain error
    except ImportError as error:
        raise ConfigurationError(
            "an export to ONNX needs the packages onnx and onnxscript: install interstack[onnx]"
        ) from error
    path = directory / ONNX_FILE
    shortest = receptive_field(student.config)
    example = torch.zeros(2, max(round(_EXAMPLE_SECONDS * SAMPLE_RATE), 2 * shortest))
    batch, samples = torch.export.Dim("batch"), torch.export.Dim("num_samples", min=shortest)
    with _quiet():
        torch.onnx.export(
            _HiddenStates(student).cpu(),
            (example,),
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=["waveforms"],
            output_names=["hidden_states"],
            dynamic_shapes={"waveforms": {0: batch, 1: samples}},
            external_data=False,
            verbose=False,
        )
    return path


def check_onnx(
    student: Student, path: Path, clips: Sequence[Tensor] = ()
) -> PrecisionReport | None:
    """Compare a graph's hidden states, computed by onnxruntime, with the student's in float32.

    Args:
        student: The student that was exported.
        path: The graph.
        clips: Speech, (num_samples,) each, of which the two shortest are used; without any, one
            second of noise.

    Returns:
        The errors; None, with a warning, if onnxruntime is not installed.

    Raises:
        PrecisionError: If a hidden state differs by more than two float32 implementations do.
    """
    try:
        import onnxruntime
    except ImportError:
        log.warning("%s is not compared with the student: install onnxruntime for that", ONNX_FILE)
        return None
    if not clips:
        noise = torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
        clips = [0.1 * noise]
    session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    device = next(student.parameters()).device
    errors: dict[str, float] = {}
    with evaluating(student), torch.no_grad():
        for clip in sorted(clips, key=len)[:2]:
            length = torch.tensor([len(clip)], device=device)
            expected = student(clip[None].to(device), length).hidden_states
            (found,) = session.run(None, {"waveforms": clip[None].numpy()})
            for index, (one, other) in enumerate(zip(found, expected, strict=True)):
                name = f"hidden state {index}"
                error = relative_error(torch.from_numpy(one), other.cpu())
                errors[name] = max(error, errors.get(name, 0.0))
    report = report_errors(list(errors.items()), "ONNX graph", "float32", BOUNDS["float32"])
    report.require(
        "--onnx",
        "give another version of torch or onnxruntime, or --no-precision-check to continue without "
        "this check",
    )
    log.info("%s", report)
    return report


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter, whose messages are of its own packages and steps."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
