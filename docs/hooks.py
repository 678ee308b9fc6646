"""What mkdocs does besides: tables of options, and an API page for each folder of the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from options import MARKER, option_tables

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

PACKAGE: Final = Path(__file__).parents[1] / "interstack"


def on_config(config: MkDocsConfig) -> None:
    """Add the API pages to the navigation."""
    assert config.nav is not None
    config.nav[-1] = {"API": [{name: _page(name)} for name, _ in folders()]}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the API pages themselves."""
    from mkdocs.structure.files import File

    for name, modules in folders():
        directives = "\n".join(f"::: {module}\n" for module in modules)
        content = f"# {name}\n\n{directives}"
        files.append(File.generated(config, _page(name), content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the tables of options where the page about them wants them."""
    del page, config, files
    return markdown.replace(MARKER, option_tables()) if MARKER in markdown else markdown


def folders() -> Iterator[tuple[str, list[str]]]:
    """Yield the package and each folder of it, with the modules that have something public."""
    yield "interstack", ["interstack"]
    for folder in sorted(PACKAGE.rglob("__init__.py")):
        parts = folder.parent.relative_to(PACKAGE.parent).parts
        modules = [path.stem for path in sorted(folder.parent.glob("*.py"))]
        if len(parts) > 1:
            name = ".".join(parts)
            yield name, [f"{name}.{each}" for each in modules if not each.startswith("_")]


def _page(name: str) -> str:
    return f"api/{name}.md"
