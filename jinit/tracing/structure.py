"""What a higher-order equation is made of, whatever primitive and JAX version wrote it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax.core import AbstractValue
from jax.extend import core as jex

from jinit.tracing._jax import close, is_hidden, is_pinned, scan_sizes, sub_jaxprs

__all__ = [
    "PRODUCTS",
    "Body",
    "Kind",
    "Path",
    "Structure",
    "below",
    "declares_dtypes",
    "inlined_body",
    "structure_of",
]

Path = tuple[int, ...]
"""Where an equation stands: its index in each enclosing jaxpr; a branch of a cond adds its own."""

Kind = Literal[
    "plain",
    "jit",
    "remat",
    "scan",
    "while",
    "cond",
    "custom_jvp",
    "custom_vjp",
    "shard_map",
    "opaque",
]


@dataclass(frozen=True)
class Body:
    """A sub-jaxpr with its constants."""

    jaxpr: jex.Jaxpr
    consts: tuple[Any, ...]


@dataclass(frozen=True)
class Structure:
    """An equation's sub-jaxprs and how its operands divide among them.

    Attributes:
        kind: How the bodies are run; ``plain`` has none, ``opaque`` is not understood.
        bodies: One body; for while the condition and the body; for cond one a branch.
        num_consts: Leading operands that every iteration of a scan sees whole; for while those
            of the condition.
        num_carry: Operands of a scan or a while that are carried from iteration to iteration.
        length: Iterations of a scan.
    """

    kind: Kind
    bodies: tuple[Body, ...] = ()
    num_consts: int = 0
    num_carry: int = 0
    length: int = 0


PRODUCTS = frozenset({"dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general"})
"""The primitives that multiply matrices."""

_PLAIN = Structure("plain")
_CALLS: dict[str, tuple[Kind, str]] = {
    "jit": ("jit", "jaxpr"),
    "pjit": ("jit", "jaxpr"),
    "closed_call": ("jit", "call_jaxpr"),
    "core_call": ("jit", "call_jaxpr"),
    "remat2": ("remat", "jaxpr"),
    "checkpoint": ("remat", "jaxpr"),
    "custom_jvp_call": ("custom_jvp", "call_jaxpr"),
    "custom_vjp_call": ("custom_vjp", "call_jaxpr"),
    "shard_map": ("shard_map", "jaxpr"),
}


def below(planted: Mapping[Path, Any], path: Path) -> dict[Path, Any]:
    """Selects what stands below a path."""
    return {key: tree for key, tree in planted.items() if key[: len(path)] == path}


def _body(jaxpr: Any) -> Body:
    opened, consts = close(jaxpr)
    return Body(opened, tuple(consts))


def _scan(params: dict[str, Any]) -> Structure:
    num_consts, num_carry = scan_sizes(params)
    return Structure("scan", (_body(params["jaxpr"]),), num_consts, num_carry, params["length"])


def _while(params: dict[str, Any]) -> Structure:
    bodies = (_body(params["cond_jaxpr"]), _body(params["body_jaxpr"]))
    num_carry = len(bodies[1].jaxpr.invars) - params["body_nconsts"]
    return Structure("while", bodies, params["cond_nconsts"], num_carry)


def declares_dtypes(equation: jex.JaxprEqn) -> bool:
    """Returns whether an equation calls what was compiled, or lives elsewhere, for given dtypes.

    An exported function, a callback, a foreign call: a primitive that carries what it calls, or the
    shapes and dtypes that it returns, and does not derive them from its operands; or one that
    returns nothing, and is called for what it does with its operands as they are.
    """
    return not equation.outvars or any(map(_is_signature, equation.params.values()))


def _is_signature(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(map(_is_aval, value))
    called = isinstance(value, Callable) and not isinstance(value, type)
    return called or _is_aval(value) or hasattr(value, "out_avals")


def _is_aval(value: Any) -> bool:
    return isinstance(value, jax.ShapeDtypeStruct | AbstractValue)


def structure_of(equation: jex.JaxprEqn) -> Structure:
    """Reads an equation's structure; one whose sub-jaxprs are not understood is ``opaque``."""
    name, params = equation.primitive.name, equation.params
    if name in _CALLS:
        kind, field = _CALLS[name]
        return Structure(kind, (_body(params[field]),))
    if name == "scan":
        return _scan(params)
    if name == "while":
        return _while(params)
    if name == "cond":
        return Structure("cond", tuple(_body(branch) for branch in params["branches"]))
    hidden = is_hidden(equation) or sub_jaxprs(equation)
    return Structure("opaque") if hidden else _PLAIN


def inlined_body(equation: jex.JaxprEqn) -> Body | None:
    """Returns the body of a jit that pins no sharding, and None for all other equations."""
    params = equation.params
    if "jaxpr" not in params and "call_jaxpr" not in params:
        return None
    structure = structure_of(equation)
    pinned = "in_shardings" in params and is_pinned(params)
    return structure.bodies[0] if structure.kind == "jit" and not pinned else None
