"""Whether a frozen upstream computes what it does in float32, on the first batch it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interstack.models.precision import (
    NO_TF32,
    PrecisionReport,
    compare_with_float32,
    number_format,
)

Reporter = Callable[[PrecisionReport], None]


def check_at_first_batch(
    upstream: nn.Module, name: str, device: torch.device, report: Reporter
) -> None:
    """Let an upstream of s3prl be compared with float32 on the first waveforms that it is given.

    Nothing is computed where it is in float32.

    Args:
        upstream: On the device.
        name: What the user called it.
        device: The device.
        report: Takes what was found.
    """
    if number_format(upstream, device) == "float32":
        return

    def check(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        handle.remove()
        waveforms = sorted(arguments[0], key=len)[:2]

        def run(model: nn.Module) -> Sequence[Tensor]:
            states: Sequence[Tensor] = model(waveforms)["hidden_states"]
            return states

        report(check_upstream(module, run, name, device))

    handle = upstream.register_forward_pre_hook(check)


def check_upstream(
    upstream: nn.Module,
    run: Callable[[Any], Sequence[Tensor]],
    name: str,
    device: torch.device,
) -> PrecisionReport:
    """Compare an upstream with itself in float32.

    Args:
        upstream: On the device.
        run: Runs it, or a copy of it, and returns its hidden states.
        name: What the user called it.
        device: The device.

    Raises:
        PrecisionError: If the error is more than rounding.
    """
    format = number_format(upstream, device)
    found = compare_with_float32(upstream, run, device, name=f"upstream {name}", format=format)
    found.require(
        f"{format} on {device.type}",
        f"{NO_TF32 if format == 'tf32' else 'give another device or a model in float32'}, or "
        "--no-precision-check to go on without this check",
    )
    return found
