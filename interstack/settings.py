"""Options that belong to a choice of another option, refused where they would have no effect.

An option that differs from its default and has no effect in the present combination is refused. Its
default is never refused, so that a resolved configuration, which names every option, loads again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from interstack.errors import ConfigurationError

Owners = Mapping[str, tuple[str, tuple[object, ...]]]
"""By an option's name the option that it belongs to, and the values of that which need it."""


def idle_options(settings: Mapping[str, Any], owners: Owners) -> list[str]:
    """Return the options that have no effect in the present combination.

    Args:
        settings: A section's options by name.
        owners: The options that they belong to.
    """
    return [name for name, (owner, choices) in owners.items() if settings[owner] not in choices]


def defaults_of(made: Callable[..., object]) -> dict[str, Any]:
    """Return the defaults of a class's or function's arguments by name."""
    return {name: argument.default for name, argument in signature(made).parameters.items()}


def check_effects(
    section: str, settings: Mapping[str, Any], defaults: Mapping[str, Any], owners: Owners
) -> None:
    """Refuse options of a section that differ from their default and have no effect.

    Args:
        section: Its dotted name, such as ``model.objective``.
        settings: Its options by name.
        defaults: Their defaults.
        owners: The options that they belong to.

    Raises:
        ConfigurationError: With the first such option, its value and the fix.

    Example:
        >>> settings = {"schedule": "eql", "alpha": 2.0}
        >>> check_effects("growth", settings, {"alpha": 1.0}, {"alpha": ("schedule", ("prop",))})
        Traceback (most recent call last):
        ...
        interstack.errors.ConfigurationError: growth.alpha is 2.0, which has no effect with \
growth.schedule eql: leave it out, or give growth.schedule prop
    """
    for name in idle_options(settings, owners):
        owner, choices = owners[name]
        check_effect(
            f"{section}.{name}",
            settings[name],
            defaults[name],
            f"with {section}.{owner} {_written(settings[owner])}",
            f"give {section}.{owner} {' or '.join(map(_written, choices))}",
        )


def check_effect(option: str, value: object, default: object, where: str, fix: str = "") -> None:
    """Refuse a value other than the default for an option that has no effect.

    Args:
        option: Its full name, dotted or with dashes as the command at hand has it.
        value: Its value.
        default: Its default.
        where: Why it has no effect, as words after "has no effect".
        fix: How it would have one, as words after "leave it out, or"; may be empty.

    Raises:
        ConfigurationError: If the value is not the default.
    """
    if _plain(value) == _plain(default):
        return
    alternative = f", or {fix}" if fix else ""
    raise ConfigurationError(
        f"{option} is {_written(_plain(value))}, which has no effect {where}: "
        f"leave it out{alternative}"
    )


def _plain(value: object) -> object:
    """Return a list for a tuple: a configuration file does not distinguish them."""
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


def _written(value: object) -> str:
    """Return a value as a configuration file has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else f"{value}"
