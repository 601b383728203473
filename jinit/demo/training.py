"""Training, as a user would write it, with what it did at every step."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jinit
from jinit.demo.data import Digits
from jinit.demo.model import Initialization, PlainCNN, initialize
from jinit.typing import OptLevel

__all__ = ["BATCH", "Recipe", "Run", "Trainer"]

BATCH = 64
OnEpoch = Callable[[], None] | None


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        label: What the tables call it.
        how: Its initialization.
        depth: Its number of layers.
        opt_level: Its precision.
        half_dtype: The half dtype of that precision.
        learning_rate: The peak of a cosine that falls to 0.
        epochs: Passes over the training images.
        init_scale: Where a loss scale that is too high starts; None leaves it to the level.
    """

    label: str
    how: Initialization = "jinit"
    depth: int = 4
    opt_level: OptLevel = "O0"
    half_dtype: str = "bfloat16"
    learning_rate: float = 0.0625
    epochs: int = 15
    init_scale: float | None = None


@dataclass(frozen=True)
class Run:
    """What a training did.

    Attributes:
        recipe: How it was trained.
        losses: The cross-entropy of every step.
        scales: The loss scale of every step.
        finite: Whether the gradients of every step were finite.
        accuracy: The share of test images that are recognised.
        seconds: Wall time, compilation included.
        calibration: What was measured before, for jinit's initialization.
    """

    recipe: Recipe
    losses: np.ndarray
    scales: np.ndarray
    finite: np.ndarray
    accuracy: float
    seconds: float
    calibration: jinit.Calibration | None = None

    @property
    def final_loss(self) -> float:
        """The mean loss of the last epoch's worth of steps; inf where it is not finite."""
        last = float(np.mean(self.losses[-20:]))
        return last if np.isfinite(last) else float("inf")


def _precision(
    recipe: Recipe, model: PlainCNN, tx: optax.GradientTransformation
) -> tuple[Any, optax.GradientTransformation]:
    options: dict[str, Any] = {"half_dtype": recipe.half_dtype}
    if recipe.init_scale is None:
        return jinit.amp.initialize(model.apply, tx, recipe.opt_level, **options)
    apply_fn = jinit.amp.initialize(model.apply, None, recipe.opt_level, **options)
    tx = jinit.amp.loss_scaling(tx, init_scale=recipe.init_scale, growth_interval=50)
    return apply_fn, tx


class Trainer:
    """Trains one recipe from several seeds, and compiles its step once."""

    def __init__(self, recipe: Recipe, data: Digits) -> None:
        self.recipe, self.data = recipe, data
        self.steps = len(data.train_images) // BATCH
        self._epoch: Callable[..., Any] | None = None

    def run(
        self, key: jax.Array, *, learning_rate: float | None = None, on_epoch: OnEpoch = None
    ) -> Run:
        """Initializes and trains.

        Args:
            key: A PRNG key.
            learning_rate: Another one than the recipe's.
            on_epoch: Called after every epoch.

        Returns:
            What happened.
        """
        start = time.perf_counter()
        rate = self.recipe.learning_rate if learning_rate is None else learning_rate
        recipe = replace(self.recipe, learning_rate=rate)
        model, variables, calibration = initialize(recipe.how, recipe.depth, self._draw, key)
        apply_fn, tx = _precision(recipe, model, self._optimizer(calibration, rate))
        params = apply_fn.policy.cast_to_param(variables)
        state = (params, tx.init(params))
        if self._epoch is None:
            self._epoch = jax.jit(self._compiled_epoch(apply_fn, tx), donate_argnums=0)
        history = []
        for order in jax.random.split(jax.random.fold_in(key, 1), recipe.epochs):
            state, seen = self._epoch(state, order)
            history.append(jax.device_get(seen))
            if on_epoch is not None:
                on_epoch()
        losses, scales, finite = (np.concatenate(part) for part in zip(*history, strict=True))
        accuracy = self._accuracy(apply_fn, state[0])
        seconds = time.perf_counter() - start
        return Run(recipe, losses, scales, finite, accuracy, seconds, calibration)

    def _draw(self, key: jax.Array) -> jax.Array:
        return jax.random.choice(key, self.data.train_images, (BATCH,))

    def _optimizer(
        self, calibration: jinit.Calibration | None, learning_rate: float
    ) -> optax.GradientTransformation:
        """Adam with a cosine; the learning rate is in the state, so that all share a program."""
        multiply = optax.identity() if calibration is None else calibration.transform()
        cosine = optax.cosine_decay_schedule(1.0, self.recipe.epochs * self.steps)
        scale = optax.inject_hyperparams(optax.scale_by_learning_rate)(learning_rate)
        return optax.chain(optax.scale_by_adam(), multiply, optax.scale_by_schedule(cosine), scale)

    def _compiled_epoch(self, apply_fn: Any, tx: Any) -> Callable[..., Any]:
        images, labels, steps = self.data.train_images, self.data.train_labels, self.steps

        def step(state: Any, batch: jax.Array) -> Any:
            params, opt_state = state

            def objective(params: Any) -> Any:
                logits = apply_fn(params, images[batch])
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch])
                loss = losses.mean()
                return jinit.amp.scale_loss(loss, opt_state), loss

            gradients, loss = jax.grad(objective, has_aux=True)(params)
            scale = optax.tree.get(opt_state, "loss_scale")
            updates, opt_state = tx.update(gradients, opt_state, params)
            params = optax.apply_updates(params, updates)
            finite = optax.tree.get(opt_state, "last_finite")
            return (params, opt_state), (loss, scale, finite)

        def epoch(state: Any, key: jax.Array) -> Any:
            order = jax.random.permutation(key, len(images))[: steps * BATCH]
            batches = order.reshape(steps, BATCH)
            return jax.lax.scan(step, state, batches)

        return epoch

    def _accuracy(self, apply_fn: Any, params: Any) -> float:
        logits = jax.jit(apply_fn)(params, self.data.test_images)
        return float(jnp.mean(jnp.argmax(logits, -1) == self.data.test_labels))
