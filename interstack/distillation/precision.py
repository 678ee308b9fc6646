"""The number formats in which a student can be trained."""

from __future__ import annotations

from typing import Final

from interstack.errors import ConfigurationError

PRECISIONS: Final = ("32-true", "bf16-mixed", "16-mixed")


def check_precision(precision: str) -> None:
    """Refuse number formats in which the weights are not fp32.

    Args:
        precision: The Trainer's ``precision`` in full.

    Raises:
        ConfigurationError: For the true 16-bit formats among others. A bf16 weight swallows every
            update below 1/512 of it, as most of AdamW's are; its moments are cut short likewise.
    """
    if precision not in PRECISIONS:
        raise ConfigurationError(
            f"trainer.precision {precision} does not keep weights and AdamW's moments in fp32, and "
            "in 16 bits most updates are rounded away: give one of "
            f"{', '.join(PRECISIONS)}; model.teacher.dtype may be bfloat16 with any of them"
        )
