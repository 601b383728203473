"""What loss scaling adds to a training step: ``python -m tests.benchmarks.loss_scaling``.

Each row takes one Adam step of a float32 network of ten million parameters in turn with the
others: unscaled, by ``amp.loss_scaling`` in both of its ways, by Flax's ``DynamicScale`` and by
jmp, where that is installed (``pip install jmp``). The ratios are to the unscaled step, of the
shortest and of the median step of the rounds. A step that may be skipped keeps all gradients until
the last is checked, where the unscaled one uses each up at once; on CPUs the memory for them is
fresh in every step, and costs more than the arithmetic (``batch 64``).
"""

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.training.dynamic_scale import DynamicScale

from jinit import amp
from jinit._tables import format_table

LAYERS, WIDTH = 10, 1024
BATCH_SIZES = (64, 512, 1024)
ROUNDS = 15
ADAM = optax.adam(1e-3)
Step = Callable[[Any, Any, jax.Array], tuple[Any, Any]]


def parameters() -> list[jax.Array]:
    """Returns the weights."""
    keys = jax.random.split(jax.random.key(0), LAYERS)
    return [jax.random.normal(key, (WIDTH, WIDTH)) * (2 / WIDTH) ** 0.5 for key in keys]


def loss_fn(params: list[jax.Array], x: jax.Array) -> jax.Array:
    """A plain network's mean square output."""
    for kernel in params:
        x = jax.nn.relu(x @ kernel)
    return (x**2).mean()


def plain(params: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
    """The step without a scale."""
    _, grads = jax.value_and_grad(loss_fn)(params, x)
    updates, state = ADAM.update(grads, state, params)
    return optax.apply_updates(params, updates), state


SCALED = amp.loss_scaling(ADAM)


def by_scale_loss(params: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
    """The optimizer unscales."""
    grads = jax.grad(lambda params: amp.scale_loss(loss_fn(params, x), state))(params)
    updates, state = SCALED.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def by_value_and_grad(params: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
    """The gradients are unscaled before the optimizer sees them."""
    _, grads = amp.value_and_grad(loss_fn, state)(params, x)
    updates, state = SCALED.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def _select(finite: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)


def by_flax(params: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
    """As Flax's examples use ``DynamicScale``."""
    scale, inner = state
    scale, finite, _, grads = scale.value_and_grad(loss_fn)(params, x)
    updates, new = ADAM.update(grads, inner, params)
    moved = optax.apply_updates(params, updates)
    return _select(finite, moved, params), (scale, _select(finite, new, inner))


def by_jmp(params: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
    """As jmp's examples use ``DynamicLossScale``."""
    import jmp

    scale, inner = state
    grads = jax.grad(lambda params: scale.scale(loss_fn(params, x)))(params)
    grads = scale.unscale(grads)
    finite = jmp.all_finite(grads)
    updates, new = ADAM.update(grads, inner, params)
    moved = optax.apply_updates(params, updates)
    return _select(finite, moved, params), (scale.adjust(finite), _select(finite, new, inner))


def rows_of_steps() -> dict[str, tuple[Step, Callable[[Any], Any]]]:
    """Returns every step beside what makes its state."""
    rows: dict[str, tuple[Step, Callable[[Any], Any]]] = {
        "unscaled": (plain, ADAM.init),
        "amp, scale_loss": (by_scale_loss, SCALED.init),
        "amp.value_and_grad": (by_value_and_grad, SCALED.init),
        "flax DynamicScale": (by_flax, lambda params: (DynamicScale(), ADAM.init(params))),
    }
    if importlib.util.find_spec("jmp"):
        import jmp

        scale = jmp.DynamicLossScale(jnp.float32(2.0**15))
        rows["jmp"] = (by_jmp, lambda params: (scale, ADAM.init(params)))
    return rows


def seconds(steps: dict[str, tuple[Step, Callable[[Any], Any]]], batch: int) -> dict[str, list]:
    """Times the steps in turn."""
    x = jax.random.normal(jax.random.key(1), (batch, WIDTH))
    running, spent = {}, {name: [] for name in steps}
    for name, (step, init) in steps.items():
        compiled = jax.jit(step, donate_argnums=(0, 1))
        running[name] = compiled, compiled(parameters(), init(parameters()), x)
    for _ in range(ROUNDS):
        for name, (compiled, carry) in running.items():
            start = time.perf_counter()
            carry = jax.block_until_ready(compiled(*carry, x))
            spent[name].append(time.perf_counter() - start)
            running[name] = compiled, carry
    return spent


def main() -> None:
    """Prints the table; batch sizes may be given."""
    table = []
    for batch in map(int, sys.argv[1:] or BATCH_SIZES):
        spent = seconds(rows_of_steps(), batch)
        least = {name: min(times) for name, times in spent.items()}
        median = {name: statistics.median(times) for name, times in spent.items()}
        for name in spent:
            cells = [f"{1e3 * least[name]:.1f}", f"{least[name] / least['unscaled']:.3f}"]
            table.append([str(batch), name, *cells, f"{median[name] / median['unscaled']:.3f}"])
    columns = ["batch", "step", "ms", "ratio of the shortest", "of the median"]
    device = jax.devices()[0].device_kind
    print(format_table(columns, table, title=f"{LAYERS * WIDTH**2:,} parameters on {device}"))


if __name__ == "__main__":
    main()
