"""A few training steps of a model, in which the output of every layer is measured."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jinit._arithmetic import is_float, merge, rms
from jinit._trees import leaf_paths
from jinit.empirical.arguments import check_layers
from jinit.empirical.measuring.keys import cloned
from jinit.empirical.optimizers import applied, like
from jinit.empirical.user_functions import call_loss, explaining_pairs
from jinit.layers import Layer, survey
from jinit.modules.roles import optimized, param_mask
from jinit.tracing import EquationView, Path, TracedFunction, evaluate, trace

if TYPE_CHECKING:
    import optax

__all__ = ["Model", "Program", "Sizes", "train_and_measure"]


@dataclass(frozen=True)
class Model:
    """What is trained.

    Attributes:
        params: The variables, as ``calibrate`` takes them.
        apply_fn: ``apply_fn(params, *inputs)``.
        tx: The optimizer, its learning rate included.
    """

    params: Any
    apply_fn: Callable[..., Any]
    tx: "optax.GradientTransformation"


@dataclass(frozen=True)
class Sizes:
    """RMS, of shape (steps + 1, layers).

    Attributes:
        labels: The layers' names.
        opaque: The layers that could not be measured.
        activation: Of every layer's output.
        update: Of the output's change since step 0.
    """

    labels: tuple[str, ...]
    opaque: tuple[str, ...]
    activation: np.ndarray
    update: np.ndarray


class Program:
    """The compiled training of one width, which serves every seed whose program is the same.

    Seeds may differ in parameters, optimizer state and the arrays that functions close over;
    where they differ in more than that, another program is compiled.
    """

    def __init__(self) -> None:
        self.text = ""
        self.run: Any = None

    def __call__(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Returns ``fn(*args)``."""
        traced = trace(fn, *args)
        # addresses tell functions apart that are the same
        text = re.sub(" at 0x[0-9a-f]+", "", str(traced.jaxpr))
        if text != self.text:
            self.text, self.run = text, jax.jit(partial(_training, traced.jaxpr))
        return traced.unflatten(self.run(list(traced.consts), jax.tree.leaves(args)))


def _training(jaxpr: Any, consts: list[Any], args: list[Any]) -> list[Any]:
    return evaluate(jaxpr, consts, args, lambda view, values: None, enter=())[0]


@dataclass(frozen=True)
class _Variables:
    """Variables, divided into the leaves that are trained and those that stay."""

    tree: Any

    @cached_property
    def paths(self) -> list[str]:
        return leaf_paths(self.tree)

    @cached_property
    def parameters(self) -> tuple[bool, ...]:
        return param_mask(self.tree)

    def trained(self) -> Any:
        """Returns what the optimizer sees: the parameters, None in place of other leaves."""
        return optimized(self.tree, self.parameters)

    def leaves_with(self, trained: Any) -> list[Any]:
        """Returns all leaves, those that are trained replaced."""
        leaves = jax.tree.leaves(self.tree)
        return merge(leaves, jax.tree.leaves(trained), self._trained(leaves))

    def _trained(self, leaves: Sequence[Any]) -> list[bool]:
        flags = zip(leaves, self.parameters, strict=True)
        return [flag and is_float(leaf) for leaf, flag in flags]


def train_and_measure(
    program: Program,
    model: Model,
    inputs: tuple[Any, ...],
    dummy_loss: Callable[..., Any],
    key: jax.Array,
    steps: int,
) -> Sizes:
    """Trains on one batch, and measures every layer on it before each step and at the end.

    Args:
        program: What compiles; one a width.
        model: The model.
        inputs: The batch.
        dummy_loss: Its loss, of ``(output)`` or ``(output, key)``.
        key: The loss's key, the same at every step.
        steps: The number of steps.

    Returns:
        The RMS.

    Raises:
        ValueError: No layer was found.
    """
    variables = _Variables(model.params)
    traced = trace(model.apply_fn, model.params, *inputs)
    found = survey(traced, variables.parameters)
    measured = [layer for layer in found.layers if layer.measured]
    check_layers(measured, model.apply_fn)
    output = traced.unflatten(traced.out_avals)
    with explaining_pairs(output, model.apply_fn, "return the output alone"):
        jax.eval_shape(lambda out, key: call_loss(dummy_loss, out, key), output, key)
    training = _Training(model.tx, traced, measured, found.enter, dummy_loss, steps)
    state = model.tx.init(variables.trained())
    sizes = program(training.run, model.params, state, inputs, key)
    activation, update = (
        np.concatenate([size.reshape(steps + 1, -1) for size in kind], axis=1)
        for kind in jax.device_get(sizes)
    )
    return Sizes(
        tuple(_labels(measured, variables.paths)),
        tuple(variables.paths[layer.leaf] or "." for layer in found.layers if not layer.measured),
        activation,
        update,
    )


@dataclass(frozen=True)
class _Training:
    tx: "optax.GradientTransformation"
    traced: TracedFunction
    layers: Sequence[Layer]
    enter: frozenset[Path]
    dummy_loss: Callable[..., Any]
    steps: int

    def run(self, params: Any, state: Any, inputs: Any, key: jax.Array) -> Any:
        """Returns the RMS of outputs and of their changes, a list over layers of each."""
        import optax

        variables, data = _Variables(params), jax.tree.leaves(inputs)

        def objective(trained: Any) -> tuple[jax.Array, list[jax.Array]]:
            result, outputs = self.outputs([*variables.leaves_with(trained), *data])
            return call_loss(self.dummy_loss, result, key), outputs

        def step(carry: Any, number: jax.Array) -> Any:
            trained, state, first = carry
            gradients, outputs = jax.grad(objective, has_aux=True)(trained)
            first = [jnp.where(number == 0, y, y0) for y, y0 in zip(outputs, first, strict=True)]
            changes = [y - y0 for y, y0 in zip(outputs, first, strict=True)]
            # the gradient of a real function of complex numbers is the conjugate of its slope
            slopes = jax.tree.map(jnp.conj, gradients)
            updates, new = applied(self.tx, slopes, state, trained)
            trained = optax.apply_updates(trained, updates)
            return (trained, like(new, state), first), (
                self.sizes(outputs),
                self.sizes(changes),
            )

        trained = jax.tree.map(jnp.asarray, variables.trained())
        shapes = jax.eval_shape(objective, trained)[1]
        first = [jnp.zeros(each.shape, each.dtype, device=each.sharding) for each in shapes]
        state = jax.tree.map(jnp.asarray, state)
        # the last of these steps is measured before it is taken
        return jax.lax.scan(step, (trained, state, first), jnp.arange(self.steps + 1))[1]

    def outputs(self, args: list[Any]) -> tuple[Any, list[jax.Array]]:
        """Runs forward, and returns the result and every layer's output in float32 or wider."""
        tails = {layer.tail for layer in self.layers}

        def rule(view: EquationView, values: Sequence[Any]) -> list[Any] | None:
            if view.path not in tails:
                return None
            results = view.bind(values)
            view.reap(_wide(results[0]))
            return results

        traced = self.traced
        consts = cloned(traced.consts)
        flat, reaped = evaluate(traced.jaxpr, consts, cloned(args), rule, enter=self.enter)
        return traced.unflatten(flat), [reaped[layer.tail] for layer in self.layers]

    def sizes(self, values: Sequence[jax.Array]) -> list[jax.Array]:
        """Averages over all but the axes of the scans that a layer stands in."""
        return [
            rms(x, range(len(layer.lengths), x.ndim), jnp.real(x).dtype)
            for layer, x in zip(self.layers, values, strict=True)
        ]


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _labels(layers: Sequence[Layer], paths: Sequence[str]) -> list[str]:
    """Names every layer by its leaf; uses after the first, and iterations of scans, by number."""
    labels, uses = [], Counter[str]()
    for layer in layers:
        name = paths[layer.leaf] or "."
        uses[name] += 1
        use = f" (use {uses[name]})" if uses[name] > 1 else ""
        for place in np.ndindex(*layer.lengths):
            labels.append(name + "".join(f"[{i}]" for i in place) + use)
    return labels
