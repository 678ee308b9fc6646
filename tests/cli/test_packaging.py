"""What is declared about the package is what its code needs; each Python has its environment."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from tests import REPOSITORY

PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
OF_S3PRL = {"editdistance", "h5py", "pandas", "scikit-learn", "scipy", "dtw-python", "lxml"}
"""What s3prl's recipes import and its own package does not ask for."""


def names(requirements: list[str]) -> set[str]:
    """Return the names of what is required, as an index writes them."""
    return {_canonical(re.split(r"[\[<>=!~; ]", each)[0]) for each in requirements}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_modules() -> Iterator[str]:
    """Yield the top-level modules that the package imports, also by a string."""
    for path in (REPOSITORY / "interstack").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.split(".")[0]
            elif (
                isinstance(node, ast.Call)
                and node.args
                and "import_module" in ast.unparse(node.func)
            ):
                found = re.match(r"f?['\"](\w+)\.", ast.unparse(node.args[0]))
                if found:
                    yield found[1]


def imported_distributions() -> set[str]:
    """Return the distributions that those modules come from."""
    known = packages_distributions()
    modules = set(imported_modules()) - set(sys.stdlib_module_names) - {"interstack"}
    return {_canonical(known[module][0]) for module in modules}


def test_what_is_imported_is_declared_and_what_is_required_is_imported() -> None:
    """A package that only its extra needs is in the extra alone."""
    required, extras = names(PROJECT["dependencies"]), PROJECT["optional-dependencies"]
    tools = ("dev", "docs")
    optional = names([each for name in extras if name not in tools for each in extras[name]])
    imported = imported_distributions()
    assert imported - required - optional == set()
    assert required - imported == set()
    # for torch's exporter, by way of onnxscript; for transformers' Trainer
    assert optional - imported - OF_S3PRL == {"onnx", "accelerate"}


def test_every_declared_dependency_has_a_tested_version() -> None:
    """In constraints.txt."""
    lines = (REPOSITORY / "constraints.txt").read_text().split()
    extras = PROJECT["optional-dependencies"].values()
    declared = names([*PROJECT["dependencies"], *(each for extra in extras for each in extra)])
    assert declared - names(lines) == {"interstack"}


def test_another_python_than_the_environment_s_is_not_taken_for_it(tmp_path: Path) -> None:
    """The suite would be run on the Python of an environment that is there already."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 3.9\n")
    python.chmod(0o755)
    (tmp_path / "venv" / ".ready").touch()
    command = ["make", "setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={sys.executable}"]
    made = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert made.returncode != 0
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"PYTHON is {version}, but" in made.stderr
    assert "is of Python 3.9: give VENV=.venv-" in made.stderr
