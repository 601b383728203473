"""What the interpreter needs of JAX's insides, and how it differs between versions.

JAX has no public way to bind an equation under its recorded source line and context, and the
parameters of its control-flow primitives change between releases. Both are confined to here.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from jax._src import config, core, source_info_util
from jax._src.linear_util import DebugInfo, WrappedFun
from jax._src.named_sharding import UNSPECIFIED
from jax.extend import core as jex

_THUNK_MODULES = ("jax._src.interpreters.partial_eval", "jax._src.custom_derivatives")

__all__ = [
    "aval_of",
    "bind",
    "close",
    "comparable_params",
    "equation_context",
    "has_explicit_sharding",
    "is_tracing",
    "pad_jit_params",
    "scan_sizes",
    "sub_jaxprs",
    "trace_context",
]


def close(jaxpr: Any) -> tuple[jex.Jaxpr, Sequence[Any]]:
    """Splits a jaxpr, open or closed, into the open jaxpr and its constants."""
    if isinstance(jaxpr, jex.ClosedJaxpr):
        return jaxpr.jaxpr, jaxpr.consts
    return jaxpr, ()


def aval_of(atom: Any) -> Any:
    """Returns the declared shape and dtype of an operand or a result."""
    return atom.aval


def sub_jaxprs(equation: jex.JaxprEqn) -> list[Any]:
    """Lists the jaxprs among an equation's parameters."""
    return list(jex.jaxprs_in_params(equation.params))


def scan_sizes(params: dict[str, Any]) -> tuple[int, int]:
    """Returns the number of constants and of carried values of a scan."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # jax >= 0.12
    return len(consts), len(carry)


def comparable_params(equation: jex.JaxprEqn) -> dict[str, Any]:
    """Returns an equation's parameters, each call's own thunks replaced by what they stand for.

    A custom derivative wraps its rule anew at every call; equal calls share the user's function
    and what it was wrapped with.
    """
    if not equation.primitive.name.startswith("custom_"):
        return equation.params
    params = {name: _unwrapped(value) for name, value in equation.params.items()}
    params.pop("out_trees", None)  # they follow from the rule and the operands
    return params


def _unwrapped(value: Any) -> Any:
    if not isinstance(value, WrappedFun):
        return value
    followed = _followed(value.f)
    if followed is not None:
        return _unwrapped(followed)
    transforms = tuple(
        (transform, *(_unwrapped(arg) for arg in args if not _is_store(arg)))
        for transform, args in value.transforms
    )
    return value.f, transforms, value.params


def _followed(fn: Any) -> Any:
    """Returns the rule within JAX's own thunk around it, or None."""
    if getattr(fn, "__module__", None) not in _THUNK_MODULES:
        return None
    cells = dict(zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True))
    if "fn" in cells:  # memoized
        return _followed(cells["fn"].cell_contents)
    names = cells.keys() & {"jvp", "fwd", "jvp_jaxpr_fun", "fwd_jaxpr_thunk"}
    return cells[names.pop()].cell_contents if names else None


def _is_store(arg: Any) -> bool:
    """Tells whether a transformation's argument only receives what it computes."""
    return getattr(arg, "__qualname__", "").startswith("transformation_with_aux") or isinstance(
        arg, DebugInfo
    )


@contextlib.contextmanager
def equation_context(equation: jex.JaxprEqn) -> Iterator[None]:
    """Restores the source line, name stack and configuration an equation was traced under."""
    info = equation.source_info
    stack = source_info_util.current_name_stack() + info.name_stack
    with source_info_util.user_context(info.traceback, name_stack=stack), equation.ctx.manager:
        yield


def bind(equation: jex.JaxprEqn, values: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    """Applies an equation's primitive to values, as the equation did to its operands."""
    primitive = equation.primitive
    out = primitive.bind(*values, **primitive.get_bind_params(params))
    return list(out) if primitive.multiple_results else [out]


def has_explicit_sharding(params: dict[str, Any]) -> bool:
    """Tells whether a jit equation pins a sharding or a layout, which inlining would lose."""
    shardings = (*params["in_shardings"], *params["out_shardings"])
    layouts = (*params["in_layouts"], *params["out_layouts"])
    return any(type(s).__name__ != "UnspecifiedValue" for s in shardings) or any(
        layout is not None for layout in layouts
    )


def pad_jit_params(
    params: dict[str, Any], jaxpr: jex.ClosedJaxpr, extra_inputs: int, extra_outputs: int
) -> dict[str, Any]:
    """Returns a jit equation's parameters for a replaced jaxpr with more operands at the end."""
    return {
        **params,
        "jaxpr": jaxpr,
        "in_shardings": params["in_shardings"] + (UNSPECIFIED,) * extra_inputs,
        "in_layouts": params["in_layouts"] + (None,) * extra_inputs,
        "donated_invars": params["donated_invars"] + (False,) * extra_inputs,
        "out_shardings": params["out_shardings"] + (UNSPECIFIED,) * extra_outputs,
        "out_layouts": params["out_layouts"] + (None,) * extra_outputs,
    }


def trace_context() -> Any:
    """Returns the settings a trace depends on (64-bit mode, precision, ...), as a cache's key."""
    return config.trace_context()


def is_tracing() -> bool:
    """Tells whether what is computed now becomes part of a program that is being traced."""
    return not core.trace_state_clean()
