"""What the interpreter needs of JAX's insides, and how it differs between versions.

JAX has no public way to bind an equation under its recorded source line and context, and the
parameters of its control-flow primitives change between releases. Both are confined to here.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from jax._src import config, source_info_util
from jax._src.named_sharding import UNSPECIFIED
from jax.extend import core as jex

__all__ = [
    "aval_of",
    "bind",
    "close",
    "equation_context",
    "has_explicit_sharding",
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
