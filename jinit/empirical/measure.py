"""Statistics of every layer, taken while the traced function runs, and nothing else of it kept.

Each statistic leaves the evaluation as one number a layer (and iteration of a scan): mean
squares of activations directly, of gradients as the cotangent of a dummy operand, of updates
as the tangent of a dummy result.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex

from jinit.empirical.sites import Layer, Survey
from jinit.tracing import EquationView, Path, TracedFunction, evaluate

__all__ = ["inverse_rms", "measure_activations", "measure_gradients", "measure_updates", "wider"]


def _mean_square(x: jax.Array) -> jax.Array:
    x = jnp.abs(x).astype(jnp.float32)
    return jnp.mean(x * x) if x.size else jnp.float32(0)


def _multiply(x: jax.Array, factor: jax.Array) -> jax.Array:
    wide = wider(x.dtype)
    return (x.astype(wide) * factor.astype(wide)).astype(x.dtype)


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def wider(dtype: Any) -> Any:
    """Returns float32 for a half dtype, and any other as it is."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def inverse_rms(mean_square: jax.Array) -> jax.Array:
    """Returns 1 / sqrt(mean square), and 1 where there is nothing to scale."""
    usable = (mean_square > 0) & jnp.isfinite(mean_square)
    return jnp.where(usable, lax.rsqrt(jnp.where(usable, mean_square, 1.0)), 1.0)


def measure_activations(
    traced: TracedFunction, found: Survey, args: Sequence[Any], given: Mapping[Path, jax.Array]
) -> dict[Path, jax.Array]:
    """Runs forward once, scaling every layer's output to RMS 1 before it flows on.

    Args:
        traced: The function.
        found: Its layers.
        args: Its inputs.
        given: For layers whose carrier is shared, the factor to apply instead, by tail; 0 for
            the layer's own.

    Returns:
        The mean square of every scaled layer's output before its own factor, by tail.
    """
    tails = {layer.tail for layer in found.layers if layer.carrier is not None}

    def rule(view: EquationView, values: Sequence[Any]) -> list[Any] | None:
        if view.path not in tails:
            return None
        (output,) = view.bind(values)
        power = _mean_square(output)
        view.reap(power)
        factor = inverse_rms(power)
        if view.planted is not None:
            factor = jnp.where(view.planted > 0, view.planted, factor)
        return [_multiply(output, factor)]

    return evaluate(traced.jaxpr, traced.consts, args, rule, planted=given, enter=found.enter)[1]


@jax.custom_vjp
def _tap(x: jax.Array, power: jax.Array) -> jax.Array:
    """Returns x; the cotangent of ``power`` is the mean square of x's own."""
    return x


_tap.defvjp(lambda x, power: (x, None), lambda _, ct: (ct, _mean_square(ct)))


def measure_gradients(
    traced: TracedFunction,
    found: Survey,
    layers: Sequence[Layer],
    loss: Any,
    leaves: Any,
    data: Any,
) -> tuple[list[jax.Array], dict[Path, jax.Array], dict[Path, jax.Array]]:
    """Runs forward and backward once.

    Args:
        traced: The function.
        found: Its layers.
        layers: Those to measure.
        loss: A function of the traced function's outputs.
        leaves: The parameters.
        data: The other inputs.

    Returns:
        The gradients of the float leaves (zeros for others), the mean square of the gradient at
        each head's input, and of the activation at each tail.
    """
    heads = {layer.head: layer.operands for layer in layers}
    tails = {layer.tail for layer in layers}
    trainable = [_is_float(leaf) for leaf in leaves]

    def rule(view: EquationView, values: Sequence[Any]) -> list[Any] | None:
        if view.path not in heads and view.path not in tails:
            return None
        if view.path in heads:
            parameters = heads[view.path]
            values = [
                _tap(value, view.planted) if i not in parameters and _is_float(value) else value
                for i, value in enumerate(values)
            ]
        outputs = view.bind(values)
        if view.path in tails:
            view.reap(_mean_square(lax.stop_gradient(outputs[0])))
        return outputs

    def objective(floats: list[jax.Array], taps: dict[Path, jax.Array]) -> Any:
        it = iter(floats)
        full = [next(it) if flag else leaf for leaf, flag in zip(leaves, trainable, strict=True)]
        outputs, reaped = evaluate(
            traced.jaxpr, traced.consts, [*full, *data], rule, planted=taps, enter=found.enter
        )
        return loss(traced.unflatten(outputs)), reaped

    floats = [leaf for leaf, flag in zip(leaves, trainable, strict=True) if flag]
    taps = {layer.head: jnp.zeros(layer.lengths, jnp.float32) for layer in layers}
    (slopes, powers), reaped = jax.grad(objective, argnums=(0, 1), has_aux=True)(floats, taps)
    it = iter(slopes)
    gradients = [
        next(it) if flag else jnp.zeros_like(leaf)
        for leaf, flag in zip(leaves, trainable, strict=True)
    ]
    return gradients, powers, reaped


def _without_custom_derivative(view: EquationView, values: Sequence[Any]) -> list[Any] | None:
    """Inlines a custom_vjp, which has no forward derivative, for the plain function's."""
    if view.equation.primitive.name != "custom_vjp_call":
        return None
    return list(jex.jaxpr_as_fun(view.equation.params["call_jaxpr"])(*values))


@jax.custom_jvp
def _probe(x: jax.Array) -> jax.Array:
    """Returns 0; its tangent is the mean square of x's tangent."""
    return jnp.float32(0)


@_probe.defjvp
def _probe_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return jnp.float32(0), _mean_square(tangents[0])


def measure_updates(
    traced: TracedFunction,
    found: Survey,
    layers: Sequence[Layer],
    leaves: Sequence[Any],
    step: Sequence[Any],
    data: Sequence[Any],
) -> dict[Path, jax.Array]:
    """Runs forward once with the derivative of every layer along a step of the parameters.

    Args:
        traced: The function.
        found: Its layers.
        layers: Those to measure.
        leaves: The parameters.
        step: The change of each float leaf; others are held.
        data: The other inputs.

    Returns:
        The mean square of the first-order change in every layer's output, its input held, by
        tail.
    """
    heads = {layer.head: layer for layer in layers}
    tails = {layer.tail for layer in layers}
    moving = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]

    def rule(view: EquationView, values: Sequence[Any]) -> list[Any] | None:
        head = heads.get(view.path)
        if head is None and view.path not in tails:
            return _without_custom_derivative(view, values)
        if head is not None:
            values = [
                value if i in head.operands or not _is_float(value) else lax.stop_gradient(value)
                for i, value in enumerate(values)
            ]
        outputs = view.bind(values)
        if view.path in tails:
            view.reap(_probe(outputs[0]))
            return [lax.stop_gradient(output) for output in outputs]
        return outputs

    def run(moved: list[Any]) -> dict[Path, Any]:
        full = list(leaves)
        for i, leaf in zip(moving, moved, strict=True):
            full[i] = leaf
        args = [*full, *data]
        return evaluate(traced.jaxpr, traced.consts, args, rule, enter=found.enter)[1]

    primals = [jnp.asarray(leaves[i]) for i in moving]
    tangents = [jnp.asarray(step[i], leaves[i].dtype) for i in moving]
    return jax.jvp(run, (primals,), (tangents,))[1]
