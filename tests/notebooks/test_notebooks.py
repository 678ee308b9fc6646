"""The notebooks, executed as a reader would, on the embedded default."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
PICTURES = {"image/png", "image/svg+xml"}


def read(path: Path) -> nbformat.NotebookNode:
    """Read a notebook."""
    return nbformat.read(path, as_version=4)


def pictures(notebook: nbformat.NotebookNode) -> int:
    """Count the pictures that a notebook shows."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    return sum(bool(PICTURES & set(out.get("data", ()))) for out in outputs)


def text(notebook: nbformat.NotebookNode) -> str:
    """Return what a notebook prints."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    return "".join(out.get("text", "") for out in outputs)


@pytest.mark.slow
def test_the_notebooks_run_from_a_fresh_checkout(tmp_path: Path) -> None:
    """One after the other, with no run there yet: they make one, and show what they promise."""
    for shared in ("assets", "configs"):
        (tmp_path / shared).symlink_to(REPOSITORY / shared)
    place = shutil.copytree(REPOSITORY / "notebooks", tmp_path / "notebooks")
    done = {}
    for path in NOTEBOOKS:
        notebook = read(path)
        resources = {"metadata": {"path": str(place)}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
        done[path.stem] = notebook
    assert list(done) == ["01_growth", "02_reading_a_run", "03_using_a_student"]
    growth, reading, using = done.values()
    assert "1 1 1 1 2 2 2 2 3 3 3 3" in text(growth)
    assert pictures(growth) == 4
    assert "reading runs/quick" in text(reading)
    assert pictures(reading) == 3 + 1 + 4  # losses, the step's parts, a map a stage
    assert "13 hidden states" in text(using)
    assert "real-time factor" in text(using)
    assert pictures(using) == 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_its_outputs(path: Path) -> None:
    """Of one pass from top to bottom, for who only reads; nobody's directories are in them."""
    notebook = read(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert pictures(notebook) > 0
    told = text(notebook)
    assert "runs/quick" not in told  # a minute shows nothing: `make demo`, then `make notebooks`
    assert "Warning" not in told
    assert not re.search(r"/(home|root|tmp|work|Users)/", told)
