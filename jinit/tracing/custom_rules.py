"""How functions with custom derivatives are evaluated: the user's rules are kept.

Inside the derivative of a function at ``path``, equations stand below ``path + (-1,)``, those of
a backward rule below ``path + (-2,)``. Nothing is reaped there, and nothing planted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero
from jax.extend import core as jex

from jinit.tracing._jax import bind, call_backward, call_forward, define_vjp
from jinit.tracing.declared import cast_back, cast_to_declared, dtypes_of
from jinit.tracing.interpreter import Entry, Interpreter, Reaped
from jinit.tracing.structure import Body, Path

__all__ = ["evaluate_custom_jvp", "evaluate_custom_vjp"]


def evaluate_custom_jvp(run: Interpreter, entry: Entry) -> tuple[list[Any], Reaped]:
    """Goes into a function with a custom jvp and into its rule.

    What the rule returns has the dtypes that the function comes to, declared or not.
    """
    # Unpacked: a function that closed over the entry would keep its values beyond their trace.
    equation, (body,), path = entry.equation, entry.structure.bodies, entry.path

    def original(*args: Any) -> list[Any]:
        return bind(equation, args, equation.params)

    def entered(*args: Any) -> list[Any]:
        return run.body(body, args, {}, path)[0]

    primal = jax.custom_jvp(entered)

    @primal.defjvp
    def rule(primals: Sequence[Any], directions: Sequence[Any]) -> Any:
        # traced from the values themselves, which carry their sharding and varying axes
        example = [tuple(cast_to_declared(x, equation.invars)) for x in (primals, directions)]
        derivative = jax.make_jaxpr(lambda p, t: jax.jvp(original, p, t))(*example)
        outputs = _evaluate(run, derivative, [*primals, *directions], (*path, -1))
        dtypes = dtypes_of(jax.eval_shape(entered, *primals))
        outputs = cast_back(outputs, dtypes * 2)
        return outputs[: len(dtypes)], outputs[len(dtypes) :]

    return primal(*entry.values), {}


def evaluate_custom_vjp(run: Interpreter, entry: Entry) -> tuple[list[Any], Reaped]:
    """Goes into a function with a custom vjp and into its forward and backward rules.

    Results have the declared dtypes, so that function and forward rule agree; residuals have
    what the rule makes of them, and cotangents the dtypes of the operands.

    Three closures stand for the user's three functions, each traced anew where JAX calls it::

        primal    f(x)         is evaluated from the body that the equation holds
        forward   fwd(x)       is traced at x and evaluated at path + (-1,)
        backward  bwd(res, ct) is traced at what forward saved, and evaluated at path + (-2,)

    They close over the equation and its path alone, never over values of the trace around them.
    """
    equation, (body,), path = entry.equation, entry.structure.bodies, entry.path
    outvars = body.jaxpr.outvars

    @jax.custom_vjp
    def primal(*args: Any) -> list[Any]:
        outputs, _ = run.body(body, args, {}, path)
        return cast_to_declared(outputs, outvars)

    def forward(*args: Any) -> Any:
        operands = [arg.value for arg in args]
        perturbed = [arg.perturbed for arg in args]
        traced, (residuals, _) = jax.make_jaxpr(
            lambda *operands: call_forward(equation, operands, perturbed), return_shape=True
        )(*cast_to_declared(operands, equation.invars))
        outputs = _evaluate(run, traced, operands, (*path, -1))
        declared = _Dtypes(dtypes_of(residuals), dtypes_of(operands))
        count = len(residuals)
        return cast_to_declared(outputs[count:], outvars), (outputs[:count], declared)

    def backward(saved: Any, cotangents: Sequence[Any]) -> Any:
        residuals, declared = saved
        given = [ct for ct in cotangents if not isinstance(ct, SymbolicZero)]

        def original(residuals: Sequence[Any], given: Sequence[Any]) -> Any:
            rest = iter(given)
            full = [ct if isinstance(ct, SymbolicZero) else next(rest) for ct in cotangents]
            return call_backward(equation, residuals, full)

        example = cast_back(residuals, declared.residuals)
        traced, shape = jax.make_jaxpr(original, return_shape=True)(example, given)
        outputs = _evaluate(run, traced, [*residuals, *given], (*path, -2))
        outputs = cast_back(outputs, dtypes_of(traced.out_avals))
        found, logs = jax.tree.unflatten(jax.tree.structure(shape), outputs)
        return tuple(
            None if ct is None else cast_back([ct], [dtype])[0]
            for ct, dtype in zip(found, declared.operands, strict=True)
        ), logs

    define_vjp(primal, forward, backward)
    return primal(*entry.values), {}


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Dtypes:
    """What a backward rule must know of the forward pass: declared, and arrived at."""

    residuals: tuple[Any, ...]
    operands: tuple[Any, ...]


def _evaluate(
    run: Interpreter, traced: jex.ClosedJaxpr, values: Sequence[Any], path: Path
) -> list[Any]:
    inside = run.within_derivative(traced.jaxpr, path)
    return inside.body(Body(traced.jaxpr, tuple(traced.consts)), values, {}, path)[0]
