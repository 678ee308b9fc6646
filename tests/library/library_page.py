"""The code blocks of docs/library.md, as one program or as its definitions alone."""

from __future__ import annotations

import ast
import re
from typing import Any, Final

import lightning as L
from torch import Tensor, nn

from tests import REPOSITORY

PAGE: Final = REPOSITORY / "docs" / "library.md"


def blocks() -> list[str]:
    """The page's code blocks, with the line numbers that they have in it."""
    page = PAGE.read_text()
    found = re.finditer(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return ["\n" * page[: each.start(1)].count("\n") + each[1] for each in found]


def run_page() -> dict[str, Any]:
    """Run all blocks in the present directory, which has a README.md; return their names."""
    names: dict[str, Any] = {"__name__": "library_page_blocks"}
    for block in blocks():
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def definitions() -> dict[str, Any]:
    """Run what the blocks define, without what they do."""
    names: dict[str, Any] = {"__name__": "library_page_blocks"}
    kinds = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)
    for block in blocks():
        tree = ast.parse(block)
        tree.body = [each for each in tree.body if isinstance(each, kinds) or _is_data(each)]
        exec(compile(tree, str(PAGE), "exec"), names)
    return names


def _is_data(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "texts"


class Losses(L.Callback):
    """Notes every step's loss."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401
        *_: object,
    ) -> None:
        """Note it."""
        del trainer, pl_module
        self.losses.append(outputs["loss"].item())


def fingerprint(module: nn.Module) -> dict[str, list[float]]:
    """A module's weights as a file of JSON can have them."""
    weights: dict[str, Tensor] = module.state_dict()
    return {name: tensor.flatten().tolist() for name, tensor in weights.items()}
