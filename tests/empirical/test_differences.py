"""The three pillars by finite differences in float64, on nets that jinit only calibrates.

A layer's output is linear in its own parameters, so that the difference which a step of these
alone makes is its update, its input being what it was. The gradient at its input is that with
respect to a zero which is added there.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jinit
from tests.empirical.zoo import SETTINGS

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")
BATCH, WIDTH, STEP = 4, 8, 1e-5


class Layers:
    """Applies layers in turn, and keeps what each produced."""

    def __init__(self, params: Any, taps: Any):
        self.params, self.taps, self.outputs = params, taps, {}

    def __call__(self, name: str, x: jax.Array, stride: int | None = None) -> jax.Array:
        layer, x = self.params[name], x + self.taps[name]
        if stride is None:
            y = x @ layer["w"] + layer["b"]
        else:
            layout = ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(
                x, layer["w"], (stride, stride), "SAME", dimension_numbers=layout
            )
            y = y + layer["b"]
        self.outputs[name] = y
        return y


def chain(params, x, taps):
    layer = Layers(params, taps)
    for i in range(3):
        x = jnp.tanh(layer(f"layer{i}", x))
    return layer("layer3", x), layer.outputs


def residual(params, x, taps):
    layer = Layers(params, taps)
    x = layer("stem", x)
    for i in range(3):
        x = x + layer(f"down{i}", jnp.tanh(layer(f"up{i}", x)))
    return layer("top", x), layer.outputs


def convolutions(params, x, taps):
    layer = Layers(params, taps)
    x = jax.nn.relu(layer("conv0", x, 1))
    x = jax.nn.relu(layer("conv1", x, 2))
    return layer("top", x.reshape(len(x), -1)), layer.outputs


MLP_INPUT, IMAGE = (BATCH, WIDTH), (BATCH, 4, 4, 2)
NETS = {
    chain: {f"layer{i}": MLP_INPUT for i in range(4)},
    residual: dict.fromkeys(
        ["stem", "up0", "down0", "up1", "down1", "up2", "down2", "top"], MLP_INPUT
    ),
    convolutions: {"conv0": IMAGE, "conv1": (BATCH, 4, 4, 3), "top": (BATCH, 12)},
}
"""The shape of every layer's input."""


def draw_params(inputs: dict[str, tuple[int, ...]], rng: np.random.Generator) -> Any:
    params = {}
    for name, (_, *size, fan_in) in inputs.items():
        kernel = (*[3] * len(size), fan_in, 3 if size else WIDTH)
        params[name] = {"w": rng.normal(0, 0.4, kernel), "b": rng.normal(0, 0.2, kernel[-1:])}
    return jax.tree.map(jnp.asarray, params)


def slopes(fn, tree):
    """Returns the derivatives of a scalar function by central differences, one by one."""
    flat, unravel = jax.flatten_util.ravel_pytree(tree)
    steps = STEP * jnp.eye(flat.size)
    change = jax.lax.map(lambda d: fn(unravel(flat + d)) - fn(unravel(flat - d)), steps)
    return unravel(change / (2 * STEP))


def output_of(net, *args):
    return net(*args)[0]


def rms(x):
    return float(np.sqrt(np.mean(np.square(np.float64(x)))))


@pytest.mark.cases
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("mode", "optimizer"), [("fold", "sgd"), *SETTINGS])
def test_every_number_of_the_report(net, mode, optimizer):
    """In explicit mode a gradient is no derivative: it is what autodiff finds with the scales."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = draw_params(NETS[net], rng)
        taps = {name: jnp.zeros(shape) for name, shape in NETS[net].items()}
        x = jnp.asarray(rng.normal(size=next(iter(NETS[net].values()))))
        slope = jnp.asarray(rng.normal(size=(BATCH, WIDTH)))

        def loss(output):
            return jnp.sum(output * slope)

        options = {"mode": mode, "has_aux": True} if mode == "explicit" else {}
        model = net if mode == "explicit" else functools.partial(output_of, net)
        result = jinit.calibrate(params, model, (x, taps), loss, optimizer=optimizer, **options)
        run = result.apply_fn if mode == "explicit" else net
        measured = expected(run, result, x, taps, loss, mode, optimizer)
    rows = {row.path.removesuffix("/w"): row for row in result.report.rows}
    assert rows.keys() == measured.keys()
    for name, numbers in measured.items():
        row = rows[name]
        found = (row.activation_after, row.gradient_after, row.update_after)
        np.testing.assert_allclose(found, numbers, rtol=1e-4)
        within = numbers[:1] if mode == "fold" else numbers
        assert all(0.999 < number < 1.001 for number in (*within, numbers[2]))


def expected(run, result, x, taps, loss, mode, optimizer) -> dict[str, tuple[float, ...]]:
    """Measures activation, gradient and update of every layer without jinit."""

    derivatives = slopes if mode == "fold" else lambda fn, tree: jax.grad(fn)(tree)
    gradients = derivatives(lambda params: loss(run(params, x, taps)[0]), result.params)
    at_inputs = derivatives(lambda taps: loss(run(result.params, x, taps)[0]), taps)
    direction = np.sign if optimizer == "adam" else lambda g: g
    steps = jax.tree.map(lambda g, m: direction(g) * m, gradients, result.multipliers)
    outputs = run(result.params, x, taps)[1]
    numbers = {}
    for name in taps:
        moved = {**result.params, name: jax.tree.map(jnp.add, result.params[name], steps[name])}
        update = run(moved, x, taps)[1][name] - outputs[name]
        numbers[name] = (rms(outputs[name]), rms(at_inputs[name]), rms(update))
    return numbers
