"""An extension of griffe, which reads our docstrings for the API pages."""

from __future__ import annotations

import re

import griffe


class ExampleSections(griffe.Extension):
    """Reads a section ``Example:`` as griffe's ``Examples:``, which are shown as code."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Change the docstring of an object that was loaded."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^Example:$", "Examples:", obj.docstring.value, flags=re.M
            )
