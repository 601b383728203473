import math
import re

import pytest

from jinit.initializers import calculate_gain
from jinit.initializers.gains import GAINS

LEGAL = (
    "linear, conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d, "
    "sigmoid, tanh, relu, selu, leaky_relu"
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
        "a negative slope needs nonlinearity 'leaky_relu'"
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
