"""What the interpreter needs of JAX's insides, and how it differs between versions.

JAX has no public way to bind an equation under its recorded source line and context, and the
parameters of its control-flow primitives change between releases. Both are confined to here.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax._src import config, core, source_info_util
from jax._src.ad_util import SymbolicZero, Zero
from jax._src.interpreters.ad import instantiate_zeros
from jax._src.interpreters.partial_eval import (
    close_jaxpr,
    convert_constvars_jaxpr,
    dce_jaxpr,
)
from jax._src.linear_util import DebugInfo, WrappedFun
from jax._src.named_sharding import UNSPECIFIED
from jax.extend import core as jex

from jinit._arithmetic import is_float_dtype

_HIDDEN = frozenset({"call_hi_primitive", "call_hi_primitive_linearized", "CustomVJPTraced"})
_THUNK_MODULES = ("jax._src.interpreters.partial_eval", "jax._src.custom_derivatives")

__all__ = [
    "aval_of",
    "bind",
    "bind_jit",
    "bind_remat",
    "call_backward",
    "call_forward",
    "close",
    "comparable_params",
    "define_vjp",
    "equation_context",
    "hoist_consts",
    "holds_float",
    "is_hidden",
    "is_pinned",
    "is_tracing",
    "scan_sizes",
    "scopes_of",
    "shard_map_like",
    "source_line",
    "sub_jaxprs",
    "trace_context",
    "without_unused",
]


def close(jaxpr: Any) -> tuple[jex.Jaxpr, Sequence[Any]]:
    """Splits a jaxpr, open or closed, into the open jaxpr and its constants."""
    if isinstance(jaxpr, jex.ClosedJaxpr):
        return jaxpr.jaxpr, jaxpr.consts
    return jaxpr, ()


def aval_of(atom: Any) -> Any:
    """Returns the declared shape and dtype of an operand or a result."""
    return atom.aval


def holds_float(atom: Any) -> bool:
    """Returns whether an operand or a result is of real or complex floats."""
    return is_float_dtype(aval_of(atom).dtype)


def sub_jaxprs(equation: jex.JaxprEqn) -> list[Any]:
    """Lists the jaxprs among an equation's parameters."""
    return list(jex.jaxprs_in_params(equation.params))


def is_hidden(equation: jex.JaxprEqn) -> bool:
    """Returns whether a call has no jaxpr for a body: a custom_vjp under ``jax_custom_vjp3``."""
    return equation.primitive.name in _HIDDEN


def scopes_of(equation: jex.JaxprEqn) -> tuple[str, ...]:
    """Lists the named scopes that an equation stands in, within its own jaxpr."""
    return tuple(entry.name for entry in equation.source_info.name_stack.stack)


def source_line(equation: jex.JaxprEqn) -> str:
    """Returns the user's line that an equation comes from: file, line and function."""
    frame = source_info_util.user_frame(equation.source_info.traceback)
    if frame is None:
        return "unknown"
    function = frame.function_name.split("<locals>.")[-1]
    return f"{os.path.basename(frame.file_name)}:{frame.start_line} ({function})"


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
    """Returns whether a transformation's argument only receives what it computes."""
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


def is_pinned(params: dict[str, Any]) -> bool:
    """Returns whether a jit equation asks for what inlining it would lose."""
    shardings = (*params["in_shardings"], *params["out_shardings"])
    layouts = (*params["in_layouts"], *params["out_layouts"])
    return (
        any(type(s).__name__ != "UnspecifiedValue" for s in shardings)
        or any(layout is not None for layout in layouts)
        or any(params["donated_invars"])
    )


def hoist_consts(jaxpr: jex.ClosedJaxpr) -> tuple[jex.ClosedJaxpr, Sequence[Any]]:
    """Turns a jaxpr's constants into its first inputs."""
    return close_jaxpr(convert_constvars_jaxpr(jaxpr.jaxpr)), jaxpr.consts


def bind_jit(
    equation: jex.JaxprEqn, jaxpr: jex.ClosedJaxpr, consts: Sequence[Any], values: Sequence[Any]
) -> list[Any]:
    """Applies a jit equation around another jaxpr, which may have more inputs and outputs."""
    params, before = equation.params, len(consts)
    after = len(values) - len(equation.invars)
    more = len(jaxpr.out_avals) - len(equation.outvars)

    def padded(name: str, filler: Any) -> Any:
        return (filler,) * before + tuple(params[name]) + (filler,) * after

    changed = {
        "jaxpr": jaxpr,
        "in_shardings": padded("in_shardings", UNSPECIFIED),
        "in_layouts": padded("in_layouts", None),
        "donated_invars": padded("donated_invars", False),
        "out_shardings": params["out_shardings"] + (UNSPECIFIED,) * more,
        "out_layouts": params["out_layouts"] + (None,) * more,
    }
    return bind(equation, [*consts, *values], {**params, **changed})


def bind_remat(
    equation: jex.JaxprEqn, jaxpr: jex.ClosedJaxpr, consts: Sequence[Any], values: Sequence[Any]
) -> list[Any]:
    """Applies a remat equation around another jaxpr, which may have more inputs and outputs."""
    prevent_cse = equation.params["prevent_cse"]
    if isinstance(prevent_cse, tuple):  # one an operand
        after = len(values) - len(equation.invars)
        prevent_cse = (False,) * len(consts) + prevent_cse + (False,) * after
    params = {**equation.params, "jaxpr": jaxpr.jaxpr, "prevent_cse": prevent_cse}
    return bind(equation, [*consts, *values], params)


def shard_map_like(equation: jex.JaxprEqn, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Maps a function over shards as a shard_map equation maps its jaxpr."""
    params = equation.params
    return jax.shard_map(
        fn,
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=list(params["out_specs"]),
        axis_names=params["newly_manual_axes"],
        check_vma=params["check_vma"],
    )


def call_forward(
    equation: jex.JaxprEqn, operands: Sequence[Any], perturbed: Sequence[bool]
) -> tuple[list[Any], list[Any]]:
    """Calls the forward rule of a custom_vjp equation.

    Args:
        equation: The equation.
        operands: Its operands, at the dtypes that it declares.
        perturbed: Which of them are differentiated.

    Returns:
        The residuals and the results.
    """
    _, forward, _ = equation.primitive.get_bind_params(equation.params)["subfuns"]
    pairs = zip(operands, perturbed, strict=True)
    results = iter(forward.call_wrapped(*itertools.chain.from_iterable(pairs)))
    forwarded = equation.params["out_trees"]()[2]  # the operand that a residual is, or None
    residuals = [next(results) if i is None else operands[i] for i in forwarded]
    return residuals, list(results)


def call_backward(
    equation: jex.JaxprEqn, residuals: Sequence[Any], cotangents: Sequence[Any]
) -> tuple[list[Any], Any]:
    """Calls the backward rule of a custom_vjp equation after its forward rule.

    Args:
        equation: The equation.
        residuals: As ``call_forward`` returned them.
        cotangents: One a result, of which some may be symbolic zeros.

    Returns:
        A cotangent an operand, None where it is zero, and what the rule logs (jax >= 0.12).
    """
    *_, backward = equation.primitive.get_bind_params(equation.params)["subfuns"]
    if not equation.params["symbolic_zeros"]:
        cotangents = [_instantiate(ct) for ct in cotangents]
    found = backward.call_wrapped(*residuals, *cotangents)
    found, logs = found if isinstance(found, tuple) else (found, None)
    return [None if isinstance(ct, Zero | SymbolicZero) else ct for ct in found], logs


def _instantiate(cotangent: Any) -> Any:
    zero = isinstance(cotangent, SymbolicZero)
    return instantiate_zeros(Zero(cotangent.aval)) if zero else cotangent


def define_vjp(
    function: Any,
    forward: Callable[..., Any],
    backward: Callable[..., tuple[tuple[Any, ...], Any]],
) -> None:
    """Gives a function rules that know symbolic zeros; the backward one also returns logs."""
    if hasattr(function, "defvjp_with_logs"):  # jax >= 0.12
        function.defvjp_with_logs(forward, backward, symbolic_zeros=True)
    else:
        function.defvjp(forward, lambda *args: backward(*args)[0], symbolic_zeros=True)


def trace_context() -> Any:
    """Returns the settings a trace depends on (64-bit mode, precision, ...), as a cache's key."""
    return config.trace_context()


def is_tracing() -> bool:
    """Returns whether what is computed now becomes part of a program that is being traced."""
    return not core.trace_state_clean()


def without_unused(jaxpr: jex.Jaxpr) -> tuple[jex.Jaxpr, list[bool]]:
    """Takes out what no output depends on, in loops and calls as well.

    Returns:
        The jaxpr, and which of its inputs it still has.
    """
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
