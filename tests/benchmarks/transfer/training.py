"""Trains a network from several seeds at one learning rate after another."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jinit
from jinit.demo.model import random_loss
from tests.benchmarks.transfer.curves import LAST
from tests.benchmarks.transfer.families import Batch, Family, Size

__all__ = ["Trainer"]

SEEDS = 5
SAMPLES = 8
LAYERS = (nn.Dense, nn.DenseGeneral, nn.Embed)


class Trainer:
    """A network, its starting points from all seeds, and the compiled training.

    Attributes:
        layers: How much a unit step of all layers at once changes the output of each, the head
            last; 1 for a default.
        spread: The largest growth of a seed over the smallest.
    """

    def __init__(self, family: Family, start: str, size: Size) -> None:
        kernel_init = (
            jinit.initializers.kaiming_normal() if start == "he" else nn.linear.default_kernel_init
        )
        self.family, self.calibrated = family, start == "jinit"
        self.model = family.build(*size, kernel_init=kernel_init)
        self.layers, self.spread = np.ones(1), 1.0
        keys = jax.random.split(jax.random.key(0), SEEDS)
        starts = jax.lax.map(lambda key: self.model.init(key, family.draw(key)[0]), keys)
        singles = [jax.tree.map(lambda leaf, i=i: leaf[i], starts) for i in range(SEEDS)]
        if self.calibrated:
            singles = [self._calibrate(v, key) for v, key in zip(singles, keys, strict=True)]
            self._set_growth(singles)
        starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *singles)
        self._run = jax.jit(functools.partial(self._train_all, starts, keys))

    def _calibrate(self, variables: Any, key: jax.Array) -> jinit.Calibration:
        return jinit.calibrate(
            variables, self.model.apply, self._inputs, random_loss, key=key, samples=SAMPLES
        )

    @functools.cached_property
    def _inputs(self) -> Callable[[jax.Array], jax.Array]:
        return lambda key: self.family.draw(key)[0]

    def _set_growth(self, calibrations: list[jinit.Calibration]) -> None:
        measure = jax.jit(functools.partial(growth, self.model, self._inputs))
        logs = np.log([jax.device_get(measure(calibration)) for calibration in calibrations])
        self.layers = np.exp(logs.mean(0))
        self.spread = float(np.exp(np.ptp(logs.mean(1))))

    def losses(self, learning_rate: float) -> list[float | None]:
        """Returns the mean loss of every seed's last steps, None where it diverged."""
        losses = np.asarray(self._run(jnp.float32(learning_rate)))
        results = np.mean(losses[:, -LAST:], axis=1)
        return [float(f"{loss:.5g}") if np.isfinite(loss) else None for loss in results]

    def _train_all(self, starts: Any, keys: jax.Array, rate: jax.Array) -> jax.Array:
        return jax.lax.map(lambda pair: self._train(*pair, rate), (starts, keys))

    def _train(self, start: Any, key: jax.Array, rate: jax.Array) -> jax.Array:
        """Trains with Adam and a cosine; returns the loss of every step."""
        cosine = optax.cosine_decay_schedule(1.0, self.family.steps)
        multiply = start.transform() if self.calibrated else optax.identity()
        tx = optax.chain(
            optax.scale_by_adam(),
            multiply,
            optax.scale_by_schedule(cosine),
            optax.scale_by_learning_rate(rate),
        )
        variables = start.params if self.calibrated else start

        def step(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            variables, opt_state = state
            batch = self.family.draw(key)
            loss, slopes = jax.value_and_grad(self._loss)(variables, batch)
            updates, opt_state = tx.update(slopes, opt_state)
            return (optax.apply_updates(variables, updates), opt_state), loss

        keys = jax.random.split(key, self.family.steps)
        return jax.lax.scan(step, (variables, tx.init(variables)), keys)[1]

    def _loss(self, variables: Any, batch: Batch) -> jax.Array:
        inputs, labels = batch
        logits = self.model.apply(variables, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def growth(
    model: nn.Module, draw: Callable[[jax.Array], jax.Array], calibration: jinit.Calibration
) -> jax.Array:
    """Measures how much a unit step of all layers at once changes the output of each.

    With u the sign of the gradient, m the multipliers and y the output of a layer, its change dy
    is the derivative of y along m u, all parameters moving: the layer's own step, which m brings
    to 1, and what the layers before it add, to first order and before any training.

    Returns:
        The geometric mean over keys of ``rms(dy) / rms(y)`` for every layer, the head last.
    """
    params, transform = calibration.params, calibration.transform()

    def one(key: jax.Array) -> jax.Array:
        inputs = draw(key)
        slopes = jax.grad(lambda v: random_loss(model.apply(v, inputs), key))(params)
        step, _ = transform.update(jax.tree.map(jnp.sign, slopes), transform.init(params))
        outputs, changes = jax.jvp(lambda v: layer_outputs(model, v, inputs), (params,), (step,))
        ratios = [rms(dy) / rms(y) for dy, y in zip(changes, outputs, strict=True)]
        return jnp.log(jnp.concatenate(ratios))

    return jnp.exp(jnp.mean(jax.lax.map(one, jax.random.split(jax.random.key(1), SAMPLES)), 0))


def layer_outputs(model: nn.Module, variables: Any, inputs: jax.Array) -> list[jax.Array]:
    """Returns the output of every layer, those of a stack together, the head's last."""
    _, state = model.apply(
        variables,
        inputs,
        capture_intermediates=lambda module, _: isinstance(module, LAYERS),
        mutable=["intermediates"],
    )
    found = dict(state["intermediates"])
    stack, head = found.pop("stack"), found.pop("head")
    single = [output[None] for output in jax.tree.leaves(found)]
    return [*single, *jax.tree.leaves(stack), *(output[None] for output in jax.tree.leaves(head))]


def rms(x: jax.Array) -> jax.Array:
    """Returns the RMS over all axes but the first."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim))))
