"""What the growth section's options have in common: names there are, options that need each other.

The command line refuses unknown names by itself; a slip in Python must not train something else.
"""

from __future__ import annotations

from typing import get_args

from interstack.errors import ConfigurationError


def check_choice(option: str, value: str, choices: object) -> None:
    """Refuse a value that there is not.

    Args:
        option: Name in the growth section.
        value: What is given.
        choices: A ``Literal`` of what can be.

    Raises:
        ConfigurationError: In that case.
    """
    if value not in get_args(choices):
        raise ConfigurationError(
            f"there is no growth.{option} {value!r}: choose one of {', '.join(get_args(choices))}"
        )


def check_belongs(option: str, value: object, owner: str, choice: str, wanted: str) -> None:
    """Hold an option to the one choice of another that it serves.

    Args:
        option: Name of the option; None is left out.
        value: What is given for it.
        owner: Name of the option that it belongs to.
        choice: What is chosen there.
        wanted: The choice that needs the option. Under any other it would do nothing.

    Raises:
        ConfigurationError: If it is given elsewhere, or missing there.
    """
    if (choice == wanted) != (value is not None):
        raise ConfigurationError(
            f"growth.{option} belongs to growth.{owner}: {wanted}, and is needed there; "
            f"growth.{owner} is {choice!r} and growth.{option} is {value}"
        )
