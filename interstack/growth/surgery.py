"""Growing a list of layers in place: in a module in memory, and before a state dict is loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interstack.errors import CheckpointError, ConfigurationError
from interstack.growth.operators import interleave
from interstack.growth.plan import GrowthPlan
from interstack.utils.compiling import compile_layers

FreshLayer = Callable[[nn.Module], nn.Module]
"""Returns a newly initialised layer of the same kind, device and mode as the one it gets."""


@torch.no_grad()
def grow_layers(
    layers: nn.ModuleList, plan: GrowthPlan, *, fresh_layer: FreshLayer | None = None
) -> None:
    """Grow a list of layers in place.

    Originals keep their ``Parameter`` objects, clones are deep copies. Where a parent was compiled
    by ``layer.compile()``, its clone is compiled too. An optimizer that was made before does not
    have the clones: make a new one, and see ``inherit_optimizer_state``.

    Args:
        layers: The layers, bottom first.
        plan: A growth step of a stack of this depth.
        fresh_layer: Makes the layers of a plan with ``fresh_clones``; by default they are copies
            whose submodules are initialised by their ``reset_parameters``.

    Raises:
        ConfigurationError: If the plan is for another depth, or no fresh layer can be made.

    Example:
        >>> layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        >>> grow_layers(layers, GrowthPlan((0, 0, 1, 1)))
        >>> len(layers)
        4
    """
    if plan.old_depth != len(layers):
        raise ConfigurationError(
            f"a plan for {plan.old_depth} layers can't grow {len(layers)}: plan the growth step "
            "from the present depth"
        )
    present = list(layers)
    grown = []
    for index, parent in enumerate(plan.parents):
        layer = present[parent]
        if plan.is_clone(index):
            make = (fresh_layer or reset_copy) if plan.fresh_clones else copy.deepcopy
            is_compiled = layer._compiled_call_impl is not None
            layer = make(layer)
            if is_compiled:  # a copy of a compiled layer is a plain one
                compile_layers([layer])
        grown.append(layer)
    # The list object stays the same one: modules, hooks and DDP may hold it.
    del layers[:]
    layers.extend(grown)


def reset_copy(layer: nn.Module) -> nn.Module:
    """Return a newly initialised copy of a layer.

    Raises:
        ConfigurationError: If one of its submodules has parameters and can't initialise them.
    """
    check_resettable(layer)
    fresh = copy.deepcopy(layer)
    fresh.apply(_reset)  # from the inside out, as constructors do
    return fresh


def check_resettable(layer: nn.Module) -> None:
    """Raise a ConfigurationError if ``reset_copy`` can't initialise all parameters of a layer."""
    for name, module in layer.named_modules():
        if next(module.parameters(recurse=False), None) is not None and not _resets(module):
            where = f"its submodule {name}" if name else "it"
            raise ConfigurationError(
                f"growth with fresh layers initialises a {type(layer).__name__}, but {where}, a "
                f"{type(module).__name__}, has parameters and no reset_parameters(): define it, or "
                "give fresh_layer"
            )


def _resets(module: nn.Module) -> bool:
    return any(hasattr(module, name) for name in ("reset_parameters", "_reset_parameters"))


def _reset(module: nn.Module) -> None:
    for name in ("reset_parameters", "_reset_parameters"):
        reset: Callable[[], object] | None = getattr(module, name, None)
        if reset is not None:
            reset()
            return


# Layers of a module, by their dotted path ---------------------------------------------------------


def find_layers(module: nn.Module, path: str) -> nn.ModuleList:
    """Return the list of layers at a dotted path, such as ``encoder.layers``.

    Raises:
        ConfigurationError: If there is no ``ModuleList``, or one with the same layer twice.
    """
    *_, layers = modules_on(module, path)
    if not isinstance(layers, nn.ModuleList):
        raise ConfigurationError(
            f"growth.layers is {path}, but that is a {type(layers).__name__} and no ModuleList: "
            f"{_candidates(module)}"
        )
    first: dict[nn.Module, int] = {}
    for index, layer in enumerate(layers):
        if layer in first:
            raise ConfigurationError(
                f"growth.layers is {path}, whose layers {first[layer]} and {index} are one module "
                "with one set of weights: give layers that do not share their weights"
            )
        first[layer] = index
    return layers


def grow_at(
    module: nn.Module, path: str, plan: GrowthPlan, *, fresh_layer: FreshLayer | None = None
) -> None:
    """Grow the layers at a dotted path of a module; see ``grow_layers``.

    Of the modules on the path, the innermost that has a method ``fresh_layer(like)`` makes fresh
    layers, and each that has a method ``on_layers_grown(plan)`` is called when the layers have
    grown, from the inside out.
    """
    layers = find_layers(module, path)
    grow_layers(layers, plan, fresh_layer=fresh_layer or fresh_layer_of(module, path))
    for owner in reversed(modules_on(module, path)):
        hook = getattr(owner, "on_layers_grown", None)
        if hook is not None:
            hook(plan)


def fresh_layer_of(module: nn.Module, path: str) -> FreshLayer | None:
    """Return what a module on the path offers to make fresh layers; None if none does."""
    for owner in reversed(modules_on(module, path)):
        make: FreshLayer | None = getattr(owner, "fresh_layer", None)
        if make is not None:
            return make
    return None


def modules_on(module: nn.Module, path: str) -> list[nn.Module]:
    """Return all modules on a dotted path, the outermost first."""
    modules = [module]
    for name in path.split("."):
        child = getattr(modules[-1], name, None)
        if not isinstance(child, nn.Module):
            raise ConfigurationError(
                f"growth.layers is {path}, but {type(modules[-1]).__name__} has no module "
                f"{name!r}: {_candidates(module)}"
            )
        modules.append(child)
    return modules


def _candidates(module: nn.Module) -> str:
    """Return what to give as ``layers``, as the end of a message."""
    lists = [name for name, each in module.named_modules() if isinstance(each, nn.ModuleList)]
    if not lists:
        return f"{type(module).__name__} has no ModuleList; put its layers into one"
    return f"give one of {', '.join(lists)}"


# Before a state dict is loaded --------------------------------------------------------------------


def grow_on_load(
    layers: nn.ModuleList, on_layers_grown: Callable[[GrowthPlan], object] | None = None
) -> None:
    """Let a list of layers grow to the depth of each state dict that is loaded into it.

    Call it where the layers are made, so that checkpoints of any depth can be loaded, also with
    Lightning's ``load_from_checkpoint``. The weights are the state dict's.

    Args:
        layers: The layers at their first depth.
        on_layers_grown: Called with the growth step before the weights are loaded.

    Raises:
        CheckpointError: When a state dict with fewer layers is loaded.
    """
    register_load_hook(layers, _GrowOnLoad(on_layers_grown))


def register_load_hook(module: nn.Module, hook: Callable[..., None]) -> RemovableHandle:
    """Call a hook with the module, the state dict and its prefix before weights are loaded."""
    untyped: Any = module
    handle: RemovableHandle = untyped.register_load_state_dict_pre_hook(hook)
    return handle


@dataclass(frozen=True)
class _GrowOnLoad:
    """The hook of ``grow_on_load``; it is copied and pickled with the layers."""

    on_layers_grown: Callable[[GrowthPlan], object] | None

    def __call__(
        self, layers: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: object
    ) -> None:
        assert isinstance(layers, nn.ModuleList)
        depth = depth_in(state_dict, prefix)
        _check_not_shallower(depth, layers, prefix.removesuffix("."))
        if depth > len(layers):
            plan = interleave(range(len(layers)), depth)
            grow_layers(layers, plan)
            if self.on_layers_grown is not None:
                self.on_layers_grown(plan)


@dataclass(frozen=True)
class GrowPathOnLoad:
    """A pre-hook of ``load_state_dict`` that grows layers as a run has grown them.

    Attributes:
        path: Dotted path of the layers, from the module that the hook is registered with.
        depths: The run's depths.
        plans: Its growth steps, in order.
        follow: Called with the module, the path and each growth step; None: nothing is.
    """

    path: str
    depths: tuple[int, ...]
    plans: tuple[GrowthPlan, ...]
    follow: Callable[[nn.Module, str, GrowthPlan], object] | None = None

    def __call__(
        self, module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: object
    ) -> None:
        """Grow to the depth of the state dict.

        Raises:
            CheckpointError: If the growth steps do not lead there.
        """
        depth = depth_in(state_dict, f"{prefix}{self.path}.")
        if not depth:  # a part of the weights
            return
        layers = find_layers(module, self.path)
        _check_not_shallower(depth, layers, self.path)
        for plan in self.plans:
            if plan.old_depth == len(layers) < depth:
                # no layer is drawn: its weights are the checkpoint's
                grow_at(module, self.path, replace(plan, fresh_clones=False))
                if self.follow is not None:
                    self.follow(module, self.path, plan)
        if depth != len(layers):
            raise CheckpointError(
                f"the checkpoint has {depth} layers at {self.path}, but growth.depths are "
                f"{list(self.depths)}: give the depths that the run was started with"
            )


def depth_in(state_dict: Mapping[str, Any], prefix: str) -> int:
    """Return how many layers a state dict has below a prefix that ends with a dot."""
    names = (key.removeprefix(prefix) for key in state_dict if key.startswith(prefix))
    indices = {int(name.partition(".")[0]) for name in names if name.partition(".")[0].isdigit()}
    return max(indices, default=-1) + 1


def _check_not_shallower(depth: int, layers: nn.ModuleList, path: str) -> None:
    if 0 < depth < len(layers):
        raise CheckpointError(
            f"the checkpoint has {depth} layers at {path}, but the module has {len(layers)} "
            "already: load it into a module of the first depth"
        )


# Which parameter comes from which -----------------------------------------------------------------


def parent_parameters(layers: nn.ModuleList, plan: GrowthPlan) -> dict[Tensor, Tensor]:
    """Return the parent's parameter for every parameter of a clone.

    Args:
        layers: The layers after the growth step.
        plan: The growth step.
    """
    indices = plan.original_indices
    parents: dict[Tensor, Tensor] = {}
    for index, parent in enumerate(plan.parents):
        if plan.is_clone(index):
            originals = dict(layers[indices[parent]].named_parameters())
            for name, parameter in layers[index].named_parameters():
                if name in originals:
                    parents[parameter] = originals[name]
    return parents
