"""Which module type owns which parameters, for frameworks whose modules can be asked."""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jinit.modules.kinds import is_framework_type
from jinit.tracing import partition

__all__ = ["ALONE", "ModuleTypes", "find_graphdef", "graphdef_types", "linen_types", "nnx_types"]

ALONE = jax.make_user_context(None)
"""Keys jit's caches where intercepted modules make another program of the same function."""

ModuleTypes = Mapping[tuple[str, ...], type]
"""The type of the module at each path below the parameters."""


def linen_types(
    apply_fn: Callable[..., Any], variables: Any, inputs: Sequence[Any], kwargs: Mapping[str, Any]
) -> ModuleTypes:
    """Returns the types of the modules that a linen ``apply`` calls; it is traced, not run.

    Args:
        apply_fn: The ``apply``, or another method of the module's, such as ``init``.
        variables: Its first argument.
        inputs: The others.
        kwargs: Its keywords.
    """
    from flax import linen as nn

    types: dict[tuple[str, ...], type] = {}
    static, values = partition((variables, inputs, kwargs))

    def run(values: list[Any]) -> None:
        variables, inputs, kwargs = static.fill(values)
        apply_fn(variables, *inputs, **kwargs)

    def note(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        types[context.module.path] = type(context.module)
        return method(*args, **kwargs)

    # Of an nn.jit that was traced before, the modules inside would not be called again.
    with nn.intercept_methods(note), ALONE(object()):
        jax.eval_shape(run, values)
    return types


def find_graphdef(apply_fn: Callable[..., Any]) -> Any:
    """Returns the one NNX graph definition that a function closes over or is given, or None."""
    found = [] if "flax.nnx" not in sys.modules else _held(apply_fn)
    graphdefs = [value for value in found if is_framework_type(value, "flax.nnx", "GraphDef")]
    return graphdefs[0] if len(graphdefs) == 1 else None


def _held(fn: Callable[..., Any]) -> list[Any]:
    if isinstance(fn, functools.partial):
        return [*fn.args, *fn.keywords.values(), *_held(fn.func)]
    if not inspect.isfunction(fn):
        return []
    try:
        closure = inspect.getclosurevars(fn)
    except ValueError:  # a name that it closes over has no value yet
        return []
    return [*closure.nonlocals.values(), *closure.globals.values()]


def nnx_types(module: Any) -> ModuleTypes:
    """Returns the types of the modules in an NNX module."""
    from flax import nnx

    return {tuple(map(str, path)): type(inner) for path, inner in nnx.iter_modules(module)}


def graphdef_types(graphdef: Any, below: tuple[str, ...] = ()) -> ModuleTypes:
    """Returns the types of the modules in a graph definition, by their paths below one."""
    from flax import nnx

    types: dict[tuple[str, ...], type] = {}
    nodes, attributes = iter(graphdef.nodes), iter(graphdef.attributes)

    def visit(path: tuple[str, ...]) -> None:
        node = next(nodes)
        if isinstance(getattr(node, "type", None), type) and issubclass(node.type, nnx.Module):
            types[path] = node.type
        for _ in range(getattr(node, "num_attributes", 0)):
            key, attribute = next(attributes)
            if type(attribute).__name__ == "NodeAttr":
                visit((*path, str(key)))

    visit(())
    size = len(below)
    return {path[size:]: found for path, found in types.items() if path[:size] == below}
