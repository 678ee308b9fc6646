"""Options of one section that have no effect beside those of another one."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace

from interstack.checkpointing.callback import Checkpoints
from interstack.commands.run_directory import is_wandb, loggers_of
from interstack.settings import check_effect, defaults_of


def check_sections(config: Namespace) -> None:
    """Refuse options that have no effect beside those of another section.

    Args:
        config: The parsed configuration.

    Raises:
        ConfigurationError: In that case.
    """
    _check_taps(config)
    if config.trainer.enable_checkpointing is False or config.trainer.barebones:
        where = "without checkpoints (trainer.enable_checkpointing, trainer.barebones)"
        for name, default in defaults_of(Checkpoints).items():
            check_effect(f"checkpoint.{name}", config.checkpoint[name], default, where)
    if not any(map(_is_online_wandb, loggers_of(config))):
        where, fix = "without a WandbLogger that is online", "add one to trainer.logger"
        outage = config.tracking.wandb_outage
        check_effect("tracking.wandb_outage", outage, "offline", where, fix)


def _check_taps(config: Namespace) -> None:
    depths, taps = list(config.growth.depths), config.model.teacher.taps
    on_layers = sum(depths[:1]) if taps is None else sum(tap > 0 for tap in taps)
    if len(depths) == 1:
        where, fix = f"with the single depth of growth.depths {depths}", "give more depths"
    elif on_layers < 2:
        where, fix = "with a single tap on a layer, always the top one", "give more taps"
    else:
        return
    placement = config.model.student.tap_placement
    check_effect("model.student.tap_placement", placement, "block_end", where, fix)


def _is_online_wandb(logger: Any) -> bool:  # noqa: ANN401, a class and its arguments, or a switch
    return is_wandb(logger) and not (logger.get("init_args") or {}).get("offline")
