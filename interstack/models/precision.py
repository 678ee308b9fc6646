"""Whether a model computes in a number format what it computes in float32, layer by layer.

A kernel may be wrong in one format on one kind of processor: oneDNN 3.12 computes a grouped
convolution in bfloat16 wrongly on CPUs with AMX, without an error. One batch shows it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from interstack.errors import PrecisionError

ModelT = TypeVar("ModelT", bound=nn.Module)

BOUNDS: Final = {"bfloat16": 0.5, "float16": 0.1, "tf32": 0.1, "float32": 1e-3}
"""The largest relative error, ‖found − float32‖ / ‖float32‖, of any layer that is still rounding.

Measured on speech over all layers of trained encoders: at most 0.03 in bfloat16 (8 bits of
significand) and 0.003 in float16 (11 bits, as many as TF32), but 0.14 and 0.011 in Whisper base,
where a few channels hundreds of times larger than the others decide the norm. Two float32
implementations of one model differ by 1e-5. The faults that this is for give 1.0 and more.
"""
NO_TF32: Final = "set the environment variable NVIDIA_TF32_OVERRIDE to 0"
"""How a GPU computes float32 in float32."""
SWITCH_OFF: Final = "or model.precision_check false to continue without this check"
"""How the check of ``fit`` and ``cache`` is disabled."""
_SAMPLED: Final = 65_536
"""Values of a layer's output that are compared, evenly spread; hidden states are whole."""

_STATE: Final = "hidden state "

Run = Callable[[ModelT], Sequence[Tensor]]
"""Runs a model and returns its hidden states, those at the taps or all."""


@dataclass(frozen=True)
class PrecisionReport:
    """How far a model in a number format is from float32.

    Attributes:
        model: ``student``, ``teacher``, or the user's name of it.
        format: The number format.
        layer: Where the error is largest, or the first layer above the bound.
        error: Its relative error.
        bound: The largest error that is still rounding.
    """

    model: str
    format: str
    layer: str
    error: float
    bound: float

    @property
    def passes(self) -> bool:
        """Whether the error is rounding."""
        return self.error <= self.bound

    def to_primitives(self) -> dict[str, Any]:
        """Return it as a dictionary for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"the {self.model} in {self.format} differs from float32 by at most {self.error:.2g} "
            f"({self.layer}; up to {self.bound:g} is rounding)"
        )

    def require(self, setting: str, fix: str) -> None:
        """Refuse an error that is more than rounding.

        Args:
            setting: The setting that chose the format, with its value.
            fix: What to set instead.

        Raises:
            PrecisionError: With setting, layer, error and fix.
        """
        if not self.passes:
            raise PrecisionError(
                f"{setting} computes {self.layer} of the {self.model} wrongly here: it differs "
                f"from float32 by {self.error:.2g} (relative), and up to {self.bound:g} is "
                f"rounding: {fix}"
            )


def number_format(model: nn.Module, device: torch.device) -> str:
    """Return the format that a model without autocast computes in: a key of ``BOUNDS``.

    ``float32`` is strictly that. A GPU's convolutions are in TF32 unless torch is set otherwise.
    """
    for parameter in model.parameters():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            return str(parameter.dtype).removeprefix("torch.")
    return device_format(device)


def device_format(device: torch.device) -> str:
    """Return the format that a device computes float32 in; see `number_format`."""
    if device.type == "cuda":
        matmuls = torch.get_float32_matmul_precision() != "highest"
        return "tf32" if matmuls or torch.backends.cudnn.allow_tf32 else "float32"
    return {"medium": "bfloat16", "high": "tf32"}.get(
        torch.get_float32_matmul_precision(), "float32"
    )


@torch.no_grad()
def compare_with_float32(
    model: ModelT,
    run: Run[ModelT],
    device: torch.device,
    *,
    name: str,
    format: str,
    label: str | None = None,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> PrecisionReport:
    """Run a model as it is used and in float32, and compare the outputs of all of its layers.

    Nothing of the model changes, dropout is off, and no random number is drawn.

    Args:
        model: The model, on the device.
        run: Runs it, or a copy of it in float32.
        device: Where it is.
        name: Its name in the report.
        format: What it computes in: a key of ``BOUNDS``.
        label: The user's name of the format; itself if None.
        context: In which the model is run: autocast, say.
    """
    reference = model
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        reference = copy.deepcopy(model).float()
    layers = _comparable_layers(model)
    with evaluating(model), evaluating(reference):
        with context():
            found = _outputs(model, run, layers)
        with _strict_float32(device, eager=is_compiled(model)):
            expected = _outputs(reference, run, layers)
    pairs = zip(found, expected, strict=True)
    errors = [(layer, relative_error(one, other)) for (layer, one), (_, other) in pairs]
    states = [each for each in errors if each[0].startswith(_STATE)]
    if is_compiled(model) and states[0][1] <= BOUNDS[format]:
        # compiled layers show in the states alone, which come before the heads that read them
        errors = states + errors
    return report_errors(errors, name, label or format, BOUNDS[format])


def report_errors(
    errors: Sequence[tuple[str, float]], model: str, format: str, bound: float
) -> PrecisionReport:
    """Return the first error above a bound, else the largest.

    Args:
        errors: Layers with their relative errors, in the order of computation.
        model: Its name in the report.
        format: What it computes in.
        bound: The largest error that is still rounding.
    """
    wrong = [each for each in errors if not each[1] <= bound]
    layer, error = wrong[0] if wrong else max(errors, key=lambda each: each[1])
    return PrecisionReport(model, format, layer, error, bound)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return ‖found − expected‖ / ‖expected‖; infinite where only the former is not finite.

    What is not finite in float32 either is no fault of a number format: 0.
    """
    found, expected = found.float(), expected.float()
    norm = float(torch.linalg.vector_norm(expected))
    if not norm < float("inf"):
        return 0.0
    difference = float(torch.linalg.vector_norm(found - expected))
    if difference == 0.0:
        return 0.0
    return difference / norm if difference < float("inf") and norm > 0.0 else float("inf")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode, and each of its submodules back in its own mode afterwards."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


def is_compiled(model: nn.Module) -> bool:
    """Return whether any layer of a model is compiled."""
    return any(each._compiled_call_impl is not None for each in model.modules())


def _comparable_layers(model: nn.Module) -> set[str]:
    """Return the names of layers whose outputs can be compared.

    Compiled layers are not hooked inside, which would compile them once more: their outputs are
    among the hidden states.
    """
    compiled = [
        name for name, each in model.named_modules() if each._compiled_call_impl is not None
    ]
    return {
        name
        for name, each in model.named_modules()
        if name
        and not isinstance(each, nn.Dropout | nn.Identity)
        and not any(name == other or name.startswith(f"{other}.") for other in compiled)
    }


def _outputs(model: ModelT, run: Run[ModelT], layers: set[str]) -> list[tuple[str, Tensor]]:
    """Return the outputs of layers by their names, in order, and then the hidden states."""
    outputs: list[tuple[str, Tensor]] = []
    handles = [
        module.register_forward_hook(_recorder(outputs, name))
        for name, module in model.named_modules()
        if name in layers
    ]
    try:
        states = run(model)
    finally:
        for handle in handles:
            handle.remove()
    return outputs + [(f"{_STATE}{index}", each) for index, each in enumerate(states)]


def _recorder(outputs: list[tuple[str, Tensor]], name: str) -> Callable[..., None]:
    def record(module: nn.Module, arguments: object, output: object) -> None:
        del module, arguments
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor) and first.is_floating_point():
            flat = first.detach().flatten()
            # an odd step visits all channels of layers whose width is a power of two
            step = max(1, flat.numel() // _SAMPLED) | 1
            outputs.append((name, flat[::step].float().clone()))

    return record


@contextmanager
def _strict_float32(device: torch.device, *, eager: bool) -> Iterator[None]:
    """Compute in float32 alone: no autocast, no TF32 and, if compiled layers are, nothing compiled.

    torch takes seconds to import what compiles, hence ``eager``.
    """
    before = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    flags = cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        benchmark_limit=cudnn.benchmark_limit,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    )
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device.type, enabled=False),
            torch.compiler.set_stance("force_eager") if eager else nullcontext(),
            flags if device.type == "cuda" else nullcontext(),
        ):
            yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)
