"""What README and docs say of the code holds: files, folders, options, the picture."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, get_args

import pytest

from docs.growth_picture import Scheme, growth_picture
from docs.options import MARKER, option_tables, options_of, parser_of
from interstack.commands import COMMANDS
from tests import REPOSITORY
from tests.docs.test_commands import OF_A_PROJECT

README: Final = REPOSITORY / "README.md"
DOCS: Final = REPOSITORY / "docs"
CARD: Final = REPOSITORY / "interstack" / "growth" / "README.md"
PAGES: Final = [README, CARD, *sorted(set(DOCS.glob("*.md")) - set(OF_A_PROJECT))]
PACKAGE: Final = REPOSITORY / "interstack"
OF_A_RUN: Final = ("runs/", "RUN/", "OUTPUT/", "clips/", "checkpoints/")
"""What the paths of files begin with that are not the repository's."""
UPWARDS: Final = {("data", "target_cache"), ("target_cache", "tracking")}
"""Folders with the one below them that they import from, which docs/architecture.md names."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_files_that_a_page_names_are_there(page: Path) -> None:
    """Written from the repository's directory, the package's, or beside their own page."""
    named = re.findall(r"`([\w.*-]+/[\w./*-]+|[\w*]+\.py)`", page.read_text())
    files = [name for name in named if re.search(r"\.[a-z]+$", name)]
    for name in files:
        if name.startswith(OF_A_RUN):
            continue
        roots = [REPOSITORY, PACKAGE, page.parent, *(each.parent for each in siblings(page))]
        assert any(any(root.glob(name)) for root in roots), name


def siblings(page: Path) -> Iterator[Path]:
    """Yield the package's files that a page names with their folder."""
    for name in re.findall(r"`([\w/]+/\w+\.py)`", page.read_text()):
        yield from (root / name for root in (REPOSITORY, PACKAGE) if (root / name).is_file())


@pytest.mark.parametrize("page", [README, CARD], ids=lambda page: page.parent.name)
def test_links_and_code_outside_the_site_work(page: Path) -> None:
    """The site's own are checked as it is built (`make docs`)."""
    text = page.read_text()
    links = re.findall(r"\]\(([^)#:]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    assert links
    for link in map("".join, links):
        assert (page.parent / link).exists(), link
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        names: dict[str, object] = {}
        exec(compile(block, str(page), "exec"), names)
        layers = names["layers"]
        assert len(layers) == (6 if page == README else 12)  # type: ignore[arg-type]


def test_the_readme_is_short_and_shows_python_first() -> None:
    """A newcomer reads it in three minutes."""
    lines = README.read_text().splitlines()
    assert len(lines) <= 160
    assert lines.index("```python") < 40
    six = lines[lines.index("## Dive into the code") :]
    assert sum(line.startswith("- `interstack/") for line in six) == 6


def folder_of(path: Path) -> str:
    """Return the folder of the package that a module is in, or its own name."""
    return path.relative_to(PACKAGE).parts[0]


def imports(path: Path) -> Iterator[str]:
    """Yield the folders, or modules beside them, that a module imports from, but for types."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("interstack."):
            part = (node.module or "").split(".")[1]
            yield part if (PACKAGE / part).is_dir() else f"{part}.py"


def test_folders_depend_as_the_architecture_says() -> None:
    """Each imports from those above it in the table; two imports alone point the other way."""
    text = (DOCS / "architecture.md").read_text()
    table = text[: text.index("Two imports point the other way")]
    order: list[str] = []
    for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE):
        order += [name.removeprefix("interstack/") for name in re.findall(r"`([^`]+)`", row)]
    found = {folder_of(path) for path in PACKAGE.glob("*/__init__.py")}
    found |= {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert set(order) == found
    upwards = set()
    for path in PACKAGE.rglob("*.py"):
        folder = folder_of(path)
        if folder not in order:
            continue
        upwards |= {
            (folder, each) for each in imports(path) if order.index(each) > order.index(folder)
        }
    assert upwards - UPWARDS == set()


@pytest.mark.parametrize("scheme", get_args(Scheme))
def test_the_picture_is_drawn_from_the_plans(scheme: Scheme) -> None:
    """A growth operator that changes is seen in it."""
    drawn = growth_picture(scheme)
    assert (DOCS / "images" / f"growth-{scheme}.svg").read_text() == drawn
    assert drawn.count("<rect") == 3 + 6 + 9 + 12
    assert drawn.count("fill-opacity") == 3 * 3  # the clones of three growth steps


def test_every_option_is_in_the_configuration_reference() -> None:
    """With its default, what it takes, and its docstring."""
    assert MARKER in (DOCS / "configuration.md").read_text()
    tables = option_tables()
    for action in options_of(parser_of("fit")):
        assert f"| `--{action.dest}`" in tables or f", `--{action.dest}`" in tables, action.dest
    for command in COMMANDS:
        assert f"### `interstack {command}`" in tables
    assert (
        "| `--growth.depths` | `[3, 6, 9, 12]` | list of integer | Layers of each stage" in tables
    )
    assert "| `--model.optimizer.kind` | `adamw` | `adamw`, `muon` |" in tables
    assert "### `LibriSpeechFolder`\n\n| option" in tables
    assert "| `root` | required |" in tables
