import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special

from jinit.initializers import calculate_gain, kaiming_normal, normal
from jinit.initializers.gains import GAINS
from jinit.initializers.quadrature import second_moment

LEGAL = (
    "linear, conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d, "
    "sigmoid, tanh, relu, selu, gelu, silu, softplus, leaky_relu, elu; or pass a function"
)


@pytest.mark.parametrize(
    ("nonlinearity", "gain"),
    [
        *((f"{kind}{n}d", 1.0) for kind in ("conv", "conv_transpose") for n in (1, 2, 3)),
        ("linear", 1.0),
        ("sigmoid", 1.0),
        ("tanh", 5 / 3),
        ("relu", 2**0.5),
        ("leaky_relu", math.sqrt(2 / 1.0001)),
        ("selu", 0.75),
    ],
)
def test_the_gains_are_torchs(nonlinearity, gain):
    assert calculate_gain(nonlinearity) == pytest.approx(gain, rel=1e-15)


@pytest.mark.parametrize("slope", [0, 0.01, 0.2, -0.5, 1, 5.5])
def test_leaky_relu_takes_its_slope(slope):
    assert calculate_gain("leaky_relu", slope) == math.sqrt(2 / (1 + slope**2))


@pytest.mark.parametrize("nonlinearity", GAINS)
def test_a_parameter_is_refused_where_there_is_none(nonlinearity):
    message = (
        f"nonlinearity '{nonlinearity}' takes no parameter, got 0.2; "
        "those that take one: leaky_relu (its negative_slope), elu (its alpha)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        calculate_gain(nonlinearity, 0.2)


@pytest.mark.parametrize(
    ("nonlinearity", "hint"),
    [("rellu", "; did you mean 'relu'?"), ("TANH", "; did you mean 'tanh'?"), ("zzz", ";")],
)
def test_an_unknown_name_is_told_its_neighbours(nonlinearity, hint):
    message = f"unknown nonlinearity '{nonlinearity}'{hint} Legal names: {LEGAL}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        calculate_gain(nonlinearity)


@pytest.mark.parametrize(
    ("slope", "kind", "message"),
    [
        (True, TypeError, "negative_slope must be a number, got True"),
        ("0.2", TypeError, "negative_slope must be a number, got '0.2'"),
        (math.nan, ValueError, "negative_slope must be finite, got nan"),
    ],
)
def test_a_slope_is_a_finite_number(slope, kind, message):
    with pytest.raises(kind, match=f"^{message}$"):
        calculate_gain("leaky_relu", slope)


def adaptive_gain(function):
    """1 / sqrt(E f(z)^2) by SciPy's adaptive quadrature, in float64."""
    density = lambda z: function(z) ** 2 * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)  # noqa: E731
    sides = [integrate.quad(density, *side, epsabs=1e-13)[0] for side in ((-12, 0), (0, 12))]
    return sum(sides) ** -0.5


def elu(alpha):
    return lambda z: z if z > 0 else alpha * math.expm1(z)


@pytest.mark.parametrize(
    ("nonlinearity", "param", "function"),
    [
        ("gelu", None, lambda z: z * special.ndtr(z)),
        ("silu", None, lambda z: z * special.expit(z)),
        ("softplus", None, lambda z: math.log1p(math.exp(z))),
        ("elu", None, elu(1.0)),
        ("elu", 0.3, elu(0.3)),
        ("elu", 2, elu(2.0)),
    ],
)
def test_the_gains_that_torch_has_not_keep_the_mean_square(nonlinearity, param, function):
    assert calculate_gain(nonlinearity, param) == pytest.approx(adaptive_gain(function), rel=1e-10)


@pytest.mark.parametrize(
    ("function", "gain"),
    [
        (jnp.tanh, adaptive_gain(math.tanh)),
        (jax.nn.sigmoid, adaptive_gain(special.expit)),
        (jax.nn.softplus, calculate_gain("softplus")),
        (jax.nn.elu, calculate_gain("elu")),
        (jax.nn.relu, math.sqrt(2)),
        (jax.nn.selu, 1.0),
        (jnp.sin, (0.5 - 0.5 * math.exp(-2)) ** -0.5),
        (jnp.square, 3**-0.5),
        (np.abs, 1.0),
        # by parts: E min(z^2, 1), with the kinks of hard_tanh at -1 and 1
        (
            jax.nn.hard_tanh,
            (1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi)) ** -0.5,
        ),
        (lambda z: (z > 0).astype(z.dtype), math.sqrt(2)),
    ],
)
def test_a_function_is_measured(function, gain):
    assert calculate_gain(function) == pytest.approx(gain, rel=1e-12)


def test_a_kink_between_integers_costs_digits_and_no_more():
    threshold = 0.3
    mass = special.ndtr(-threshold)
    density = math.exp(-(threshold**2) / 2) / math.sqrt(2 * math.pi)
    exact = (1 + threshold**2) * mass - threshold * density
    assert second_moment(lambda z: jax.nn.relu(z - 0.3)) == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("nonlinearity", [jax.nn.silu, "softplus", "relu"])
def test_the_gain_keeps_the_mean_square_of_a_layer(nonlinearity):
    function = getattr(jax.nn, nonlinearity) if isinstance(nonlinearity, str) else nonlinearity
    z, kernel = normal()(jax.random.key(1), (512, 512)), jax.random.key(2)
    y = function(z) @ kaiming_normal(nonlinearity=nonlinearity)(kernel, (512, 512))
    assert float(jnp.mean(y**2)) == pytest.approx(1, abs=0.1)


def test_a_function_is_measured_in_float64_where_a_model_is_traced():
    traced = []

    @jax.jit
    def model(x):
        traced.append(calculate_gain(jax.nn.mish))
        return x

    assert model(jnp.ones(2)).dtype == jnp.float32
    assert traced == [pytest.approx(adaptive_gain(lambda z: z * math.tanh(np.logaddexp(z, 0))))]
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (jnp.zeros_like, "has no gain: its mean square over a standard normal is 0.0"),
        (jnp.sum, r"must return one number for each it is given, but returned shape \(\) for"),
        (lambda z: 1 / (0 * z), "has no gain: its mean square over a standard normal is inf"),
    ],
)
def test_functions_without_a_gain(function, message):
    with pytest.raises(ValueError, match=message):
        calculate_gain(function)


def test_a_parameter_is_refused_beside_a_function():
    with pytest.raises(ValueError, match=r"takes no parameter, got 0\.5; "):
        calculate_gain(jnp.tanh, 0.5)
