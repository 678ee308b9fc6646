"""new: a small project of one's own that depends on interstack."""

from __future__ import annotations

import argparse
import keyword
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import interstack
from interstack.errors import ConfigurationError
from interstack.utils.disk import write_errors

_PACKAGE: Final = Path(interstack.__file__).parent
_TEMPLATE: Final = _PACKAGE / "templates" / "project"
_EMBEDDED: Final = _PACKAGE / "embedded"
"""The embedded speech and teacher: links into assets/ in a clone, files in an installed package."""
_SUFFIX: Final = ".jinja"


def run_new(arguments: Sequence[str]) -> None:
    """Parse the command's options and make the project.

    Args:
        arguments: The words after ``new``.

    Raises:
        ConfigurationError: If the directory is not empty, or its name can't be that of a package.
        InterstackError: If it can't be written.
    """
    parser = argparse.ArgumentParser(
        prog="interstack new",
        description="Make a small project of one's own: a configuration, a data source, a growth "
        "operator, a Makefile and tests. It trains on the embedded speech in a minute.",
    )
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="not there yet, or empty; its name is the name"
    )
    directory: Path = parser.parse_args(arguments).directory
    make_project(directory)
    print(
        f"the project is in {directory}: train with\n"
        f"  cd {directory} && make train PYTHON={sys.executable}"
    )


def make_project(directory: Path) -> None:
    """Make a project.

    Args:
        directory: Where; its name is the project's.

    Raises:
        ConfigurationError: If the directory is not empty, or its name can't be that of a package.
        InterstackError: If it can't be written.
    """
    name = directory.absolute().name
    package = _package_name(name, directory)
    _check_empty(directory)
    settings = {"name": name, "package": package, "version": interstack.__version__}
    templates = Environment(
        loader=FileSystemLoader(_TEMPLATE),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    with write_errors(directory, "free space there, or give another DIR"):
        for template in templates.list_templates():
            file = directory / _place(template, package)
            file.parent.mkdir(parents=True, exist_ok=True)
            text = templates.get_template(template).render(settings)
            file.write_text(text, encoding="utf-8")
        for part in sorted(_EMBEDDED.iterdir()):
            shutil.copytree(part, directory / "assets" / part.name)


def _package_name(name: str, directory: Path) -> str:
    """Return a project's name as that of its package."""
    package = re.sub(r"[-. ]+", "_", name).lower()
    if not package.isidentifier() or keyword.iskeyword(package) or not package.isascii():
        raise ConfigurationError(
            f"DIR is {directory}, whose name can't be that of a Python package: give one of "
            "letters, digits and dashes, such as my-project"
        )
    if package in sys.stdlib_module_names or package in ("interstack", "tests"):
        raise ConfigurationError(
            f"DIR is {directory}, but {package} is the name of another Python package: give "
            "another name, such as my-project"
        )
    return package


def _check_empty(directory: Path) -> None:
    """Refuse a place that holds something."""
    if directory.is_dir() and not any(directory.iterdir()):
        return
    if directory.exists() or directory.is_symlink():
        what = "a directory that is not empty" if directory.is_dir() else "no directory"
        raise ConfigurationError(f"DIR is {directory}, {what}: give one that is not there yet")


def _place(template: str, package: str) -> str:
    """Return where a template's text belongs in the project."""
    place = template.removesuffix(_SUFFIX)
    special = {"gitignore": ".gitignore", "tests/test_project.py": f"tests/test_{package}.py"}
    return special.get(place, re.sub(r"^package/", f"{package}/", place))
