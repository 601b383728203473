"""Statistics of every layer, taken while the traced function runs, and nothing else of it kept.

Each statistic leaves the evaluation as one number a layer (and iteration of a scan): the
RMS of activations directly, of gradients as the cotangent of a dummy operand, of updates
as the tangent of a dummy result.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex

from jinit._arithmetic import inverse_rms, is_float, merge, multiply, rms
from jinit.empirical.measuring.factors import Factors
from jinit.empirical.measuring.keys import cloned
from jinit.empirical.measuring.meshes import in_its_mesh
from jinit.empirical.measuring.vector_layout import VectorLayout
from jinit.empirical.measuring.zero_weights import bind_bypassed
from jinit.layers import Layer, Survey
from jinit.tracing import EquationView, Path, TracedFunction, evaluate, in_context_mesh

__all__ = ["Backward", "Meter"]


class Backward(NamedTuple):
    """What one forward and backward pass measures.

    Attributes:
        gradients: Those of the float leaves; zeros for others.
        activations: The RMS of every layer's output, before its factor.
        means: The mean of every output in units of its RMS; zeros unless ``detailed``.
        factors: The factors, by layer.
        slopes: The RMS of the gradient at every layer's input, before its factor.
        dead: The fraction of every layer's units that no gradient reaches.
    """

    gradients: list[jax.Array]
    activations: jax.Array
    means: jax.Array
    factors: list[jax.Array]
    slopes: jax.Array
    dead: jax.Array


@jax.custom_vjp
def _tap(x: jax.Array, size: jax.Array) -> jax.Array:
    """Returns x; the cotangent of ``size`` is the RMS of x's own."""
    return x


_tap.defvjp(lambda x, size: (x, None), in_its_mesh(lambda _, ct: (ct, rms(ct))))


@jax.custom_vjp
def _scaling_tap(x: jax.Array, size: jax.Array, factor: Factors) -> jax.Array:
    """Returns x, whose cotangent is multiplied by ``factor``, its own bringing it to RMS 1.

    The cotangent of ``size`` is the RMS before that.
    """
    return x


@in_its_mesh
def _scaling_tap_backward(factor: Factors, ct: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    size = rms(ct)
    return multiply(ct, factor.resolved(inverse_rms(size))), size, None


_scaling_tap.defvjp(lambda x, size, factor: (x, factor), _scaling_tap_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _unit_tap(y: jax.Array, dead: jax.Array, axis: int) -> jax.Array:
    """Returns y; the cotangent of ``dead`` is the fraction of units whose gradient is 0."""
    return y


@in_its_mesh
def _unit_tap_backward(axis: int, _: None, ct: jax.Array) -> tuple[jax.Array, jax.Array]:
    others = tuple(i for i in range(ct.ndim) if i != axis % max(ct.ndim, 1))
    reached = jnp.max(jnp.abs(ct), others, initial=0)
    return ct, jnp.mean(reached == 0, dtype=jnp.float32)


_unit_tap.defvjp(lambda y, dead, axis: (y, None), _unit_tap_backward)


@jax.custom_jvp
def _probe(x: jax.Array) -> jax.Array:
    """Returns 0; its tangent is the RMS of x's tangent."""
    return jnp.float32(0)


@_probe.defjvp
def _probe_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return jnp.float32(0), rms(tangents[0])


def _without_custom_derivative(view: EquationView, values: Sequence[Any]) -> list[Any] | None:
    """Inlines a custom_vjp, which has no forward derivative, for the plain function's."""
    if view.equation.primitive.name != "custom_vjp_call":
        return None
    return list(jex.jaxpr_as_fun(view.equation.params["call_jaxpr"])(*values))


@jax.custom_jvp
def _relative_probe(x: jax.Array) -> jax.Array:
    """Returns 0; its tangent is the RMS of x's tangent over that of x."""
    return jnp.float32(0)


@_relative_probe.defjvp
def _relative_probe_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    size = rms(primals[0])
    ratio = rms(tangents[0]) / jnp.where(size > 0, size, 1.0)
    return jnp.float32(0), jnp.where(size > 0, ratio, 0.0)


@dataclass(frozen=True)
class Meter:
    """Measures the layers of a traced function.

    Attributes:
        traced: The function.
        found: Its layers.
        layout: Those of them that can be measured, and where their statistics stand.
        targets: The RMS that every output is to have; one a statistic.
        probed: The leaves that hold zeros and are bypassed.
        balanced: Whether gradients are scaled as well.
        detailed: Whether means are measured.
    """

    traced: TracedFunction
    found: Survey
    layout: VectorLayout
    targets: np.ndarray
    probed: frozenset[int] = frozenset()
    balanced: bool = False
    detailed: bool = False

    @functools.cached_property
    def _heads(self) -> dict[Path, Layer]:
        return {layer.head: layer for layer in self.layout.layers}

    @functools.cached_property
    def _tails(self) -> dict[Path, Layer]:
        return {layer.tail: layer for layer in self.layout.layers}

    def forward(self, args: Sequence[Any], output_scales: Sequence[Factors]) -> jax.Array:
        """Runs forward once, scaling every output before it flows on.

        Args:
            args: The function's inputs.
            output_scales: By layer, the factor of its output; its own brings it to its target.

        Returns:
            The RMS of every output, before its factor.
        """

        def rule(view: EquationView, values: Sequence[Any]) -> list[Any] | None:
            if view.path not in self._tails:
                return None
            (output,) = view.bind(values)
            size = rms(output)
            view.reap(size)
            return [self._scaled(view, output, size)]

        reaped = self._run(args, rule, self._planted(output_scales))[1]
        return self.layout.pack(reaped, [layer.tail for layer in self.layout.layers])

    def backward(
        self,
        loss: Callable[[Any], Any],
        leaves: Sequence[Any],
        data: Sequence[Any],
        output_scales: Sequence[Factors],
        gradient_scales: Sequence[Factors],
    ) -> Backward:
        """Runs forward and backward once.

        Args:
            loss: A function of the traced function's result.
            leaves: The parameters.
            data: The other inputs.
            output_scales: By layer, the factor of its output; its own brings it to its target.
            gradient_scales: By layer, if ``balanced``, the factor of the gradient that it sends
                back through its input; its own brings that gradient to RMS 1.
        """
        moving = [is_float(leaf) for leaf in leaves]
        heads = {
            layer.head: {"gradient_scale": factor}
            for layer, factor in zip(self.layout.layers, gradient_scales, strict=True)
        }
        held = _joined(self._planted(output_scales), heads)

        def objective(floats: list[jax.Array], taps: dict[Path, Any]) -> Any:
            args = [*merge(leaves, floats, moving), *data]
            outputs, reaped = self._run(args, self._tapped, _joined(held, taps))
            return loss(self.traced.unflatten(outputs)), reaped

        floats = [leaf for leaf, flag in zip(leaves, moving, strict=True) if flag]
        differentiate = jax.grad(objective, argnums=(0, 1), has_aux=True)
        (slopes, sizes), reaped = differentiate(floats, self._taps())
        sizes = in_context_mesh(sizes)  # the derivative of a change of mesh does not change it back
        layers = self.layout.layers
        zeros = [
            leaf if flag else jnp.zeros_like(leaf)
            for leaf, flag in zip(leaves, moving, strict=True)
        ]
        return Backward(
            merge(zeros, slopes, moving),
            self._pack(reaped, "tail", "size"),
            self._pack(reaped, "tail", "mean"),
            [reaped[layer.tail]["factor"] for layer in layers],
            self._pack(sizes, "head", "head"),
            self._pack(sizes, "tail", "tail"),
        )

    def updates(
        self,
        leaves: Sequence[Any],
        step: Sequence[Any],
        data: Sequence[Any],
        output_scales: Sequence[Factors],
    ) -> jax.Array:
        """Runs forward once with the derivative of every layer along a step of the parameters.

        Args:
            leaves: The parameters.
            step: The change of each float leaf; others are held.
            data: The other inputs.
            output_scales: By layer, the factor of its output; its own brings it to its target.

        Returns:
            The RMS of the first-order change in every output, its input held.
        """
        return self._along(self._moved, leaves, step, data, output_scales)

    def joint(
        self,
        leaves: Sequence[Any],
        step: Sequence[Any],
        data: Sequence[Any],
        output_scales: Sequence[Factors],
    ) -> jax.Array:
        """Runs forward once with the derivative along the step of all parameters at once.

        Args:
            leaves: The parameters.
            step: Their changes.
            data: The other inputs.
            output_scales: By layer, the factor of its output; its own brings it to its target.

        Returns:
            The RMS of the first-order change in every output, the change in its input
            included, over that of the output.
        """
        return self._along(self._carried_on, leaves, step, data, output_scales)

    def _along(
        self,
        rule: Any,
        leaves: Sequence[Any],
        step: Sequence[Any],
        data: Sequence[Any],
        output_scales: Sequence[Factors],
    ) -> jax.Array:
        """Returns the tangents of what a rule reaps at every layer."""
        moving = [is_float(leaf) for leaf in leaves]
        planted = self._planted(output_scales)

        def run(floats: list[Any]) -> dict[Path, Any]:
            args = [*merge(leaves, floats, moving), *data]
            return self._run(args, rule, planted)[1]

        pairs = list(zip(leaves, step, moving, strict=True))
        primals = [jnp.asarray(leaf) for leaf, _, flag in pairs if flag]
        tangents = [jnp.asarray(u, leaf.dtype) for leaf, u, flag in pairs if flag]
        reaped = jax.jvp(run, (primals,), (tangents,))[1]
        return self.layout.pack(reaped, [layer.tail for layer in self.layout.layers])

    # -- rules ------------------------------------------------------------------------------

    def _run(self, args: Sequence[Any], rule: Any, planted: Any) -> tuple[list[Any], Any]:
        traced, enter = self.traced, self.found.enter
        consts, args = cloned(traced.consts), cloned(args)
        return evaluate(traced.jaxpr, consts, args, rule, planted=planted, enter=enter)

    def _scaled(self, view: EquationView, output: jax.Array, size: jax.Array) -> jax.Array:
        """Multiplies a layer's output by its factor."""
        if self._tails[view.path].carrier is None:
            return output
        return multiply(output, self._factor(view, size))

    def _factor(self, view: EquationView, size: jax.Array) -> jax.Array:
        if self._tails[view.path].carrier is None:
            return jnp.float32(1)
        own = inverse_rms(size)
        if "target" in view.planted:
            own = jnp.where(size > 0, view.planted["target"] * own, 1.0)
        return view.planted["output_scale"].resolved(own)

    def _tapped(self, view: EquationView, values: Sequence[Any]) -> list[Any] | None:
        head, tail = self._heads.get(view.path), self._tails.get(view.path)
        if head is None and tail is None:
            return None
        outputs = view.bind(values) if head is None else self._enter(view, values, head)
        if tail is None:
            return outputs
        size = rms(lax.stop_gradient(outputs[0]))
        mean = jnp.float32(0)
        if self.detailed:
            mean = jnp.mean(jnp.real(lax.stop_gradient(outputs[0])), dtype=jnp.float32)
            mean *= inverse_rms(size)
        view.reap({"size": size, "mean": mean, "factor": self._factor(view, size)})
        output = self._scaled(view, outputs[0], size)
        return [_unit_tap(output, view.planted["tail"], tail.shape.units)]

    def _enter(self, view: EquationView, values: Sequence[Any], layer: Layer) -> list[Any]:
        """Applies a layer's head with the gradient at its input tapped."""
        size, factor = view.planted["head"], view.planted["gradient_scale"]
        balanced = self.balanced and layer.carrier is not None
        values = layer.on_inputs(
            values, lambda x: _scaling_tap(x, size, factor) if balanced else _tap(x, size)
        )
        if self._is_zero(layer):
            return bind_bypassed(view, values, layer.operands[0])
        return view.bind(values)

    def _is_zero(self, layer: Layer) -> bool:
        """Returns whether nothing may flow backward through a layer, its weight being zero."""
        product = layer.kind in ("linear", "gain") and len(layer.operands) == 1
        return product and not self.probed.isdisjoint(leaf for leaf, _ in layer.leaves)

    def _moved(self, view: EquationView, values: Sequence[Any]) -> list[Any] | None:
        head = self._heads.get(view.path)
        if head is None and view.path not in self._tails:
            return _without_custom_derivative(view, values)
        if head is not None:
            values = head.on_inputs(values, lax.stop_gradient)
        outputs = view.bind(values)
        if view.path not in self._tails:
            return outputs
        size = rms(lax.stop_gradient(outputs[0]))
        output = self._scaled(view, outputs[0], size)
        view.reap(_probe(output))
        return [lax.stop_gradient(output)]

    def _carried_on(self, view: EquationView, values: Sequence[Any]) -> list[Any] | None:
        if view.path not in self._tails:
            return _without_custom_derivative(view, values)
        outputs = view.bind(values)
        size = rms(lax.stop_gradient(outputs[0]))
        output = self._scaled(view, outputs[0], size)
        view.reap(_relative_probe(output))
        return [output]

    # -- what is planted, and what is reaped --------------------------------------------------

    def _planted(self, output_scales: Sequence[Factors]) -> dict[Path, dict[str, Any]]:
        """Plants the factor and, where it is not 1, the target of every layer at its tail."""
        planted: dict[Path, dict[str, Any]] = {}
        for number, layer in enumerate(self.layout.layers):
            if layer.carrier is not None:
                target = self.layout.unpack(self.targets, number)
                aim = {} if (target == 1).all() else {"target": jnp.asarray(target)}
                planted[layer.tail] = {"output_scale": output_scales[number], **aim}
        return planted

    def _taps(self) -> dict[Path, dict[str, Any]]:
        """Plants what the sizes of gradients are the cotangents of, at heads and at tails."""
        layers = self.layout.layers
        heads = {la.head: {"head": jnp.zeros(la.lengths, jnp.float32)} for la in layers}
        tails = {la.tail: {"tail": jnp.zeros(la.lengths, jnp.float32)} for la in layers}
        return _joined(heads, tails)

    def _pack(self, found: dict[Path, dict[str, Any]], place: str, name: str) -> jax.Array:
        paths = [getattr(layer, place) for layer in self.layout.layers]
        return self.layout.pack({path: found[path][name] for path in paths}, paths)


def _joined(
    first: dict[Path, dict[str, Any]], second: dict[Path, dict[str, Any]]
) -> dict[Path, dict[str, Any]]:
    return {path: {**first.get(path, {}), **second.get(path, {})} for path in (*first, *second)}
