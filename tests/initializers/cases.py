"""Every factory that draws independent numbers, beside the distribution it must draw from.

The standard deviations are written out from the definitions.
"""

import math

from jinit.initializers import (
    bilinear,
    glorot_normal,
    he_uniform,
    kaiming_normal,
    kaiming_uniform,
    lecun_normal,
    lecun_uniform,
    normal,
    scaled,
    truncated_normal,
    uniform,
    variance_scaling,
    with_fan,
    xavier_normal,
    xavier_uniform,
)
from tests.initializers.statistics import MOMENTS, Truth

DENSE, CONV = (250, 400), (5, 5, 40, 100)
FANS = {DENSE: (250, 400), CONV: (1000, 2500)}
SHAPES = tuple(FANS)


def norm(std):
    return Truth("normal", std)


def cut(std):
    """Cut at two deviations, and then of the given one."""
    return Truth("cut", std / MOMENTS["cut"][1])


def flat(std):
    limit = math.sqrt(3) * std
    return Truth("flat", 2 * limit, -limit)


# initializer, the kind of distribution, its standard deviation by the fans
SCALING = [
    (xavier_normal(), norm, lambda i, o: math.sqrt(2 / (i + o))),
    (xavier_normal(gain=2.5), norm, lambda i, o: 2.5 * math.sqrt(2 / (i + o))),
    (glorot_normal(truncated=True), cut, lambda i, o: math.sqrt(2 / (i + o))),
    (xavier_uniform(gain=5 / 3), flat, lambda i, o: 5 / 3 * math.sqrt(2 / (i + o))),
    (kaiming_normal(), norm, lambda i, o: math.sqrt(2 / i)),
    (
        kaiming_normal(negative_slope=0.5, mode="fan_out"),
        norm,
        lambda i, o: math.sqrt(2 / 1.25 / o),
    ),
    (kaiming_normal(truncated=True), cut, lambda i, o: math.sqrt(2 / i)),
    (
        kaiming_normal(mode="fan_geo_avg", nonlinearity="tanh"),
        norm,
        lambda i, o: 5 / 3 / (i * o) ** 0.25,
    ),
    (he_uniform(nonlinearity="selu"), flat, lambda i, o: 0.75 / math.sqrt(i)),
    (
        kaiming_uniform(mode="fan_avg", nonlinearity="linear"),
        flat,
        lambda i, o: math.sqrt(2 / (i + o)),
    ),
    (lecun_normal(), norm, lambda i, o: math.sqrt(1 / i)),
    (lecun_normal(in_axis=-1, out_axis=-2), norm, lambda i, o: math.sqrt(1 / o)),
    (lecun_normal(truncated=True), cut, lambda i, o: math.sqrt(1 / i)),
    (lecun_uniform(), flat, lambda i, o: math.sqrt(1 / i)),
    (variance_scaling(3.0, "fan_out"), cut, lambda i, o: math.sqrt(3 / o)),
    (variance_scaling(0.2, "fan_avg", "normal"), norm, lambda i, o: math.sqrt(0.4 / (i + o))),
    (
        variance_scaling(2.0, "fan_geo_avg", "uniform"),
        flat,
        lambda i, o: math.sqrt(2 / math.sqrt(i * o)),
    ),
    (scaled(lecun_uniform(), -0.5), flat, lambda i, o: 0.5 / math.sqrt(i)),
    (with_fan(xavier_normal(), fan_in=600), norm, lambda i, o: math.sqrt(2 / (600 + o))),
]

# initializer and distribution
PLAIN = [
    (normal(), norm(1.0)),
    (normal(mean=-3.0, std=0.5), Truth("normal", 0.5, -3.0)),
    (uniform(), Truth("flat", 1.0)),
    (uniform(low=-0.05, high=0.05), Truth("flat", 0.1, -0.05)),
    (uniform(low=-1, high=7), Truth("flat", 8.0, -1.0)),
    (truncated_normal(), Truth("cut", 1.0)),
    (truncated_normal(mean=1.0, std=0.5, low=0.0, high=2.0), Truth("cut", 0.5, 1.0)),
    (truncated_normal(std=0.02, relative=True), Truth("cut", 0.02)),
    (scaled(normal(mean=1.0), 3.0), Truth("normal", 3.0, 3.0)),
]


def distributions(shape):
    """Lists every initializer with the distribution of its entries in an array of the shape."""
    scaling = [(init, kind(std(*FANS[shape]))) for init, kind, std in SCALING]
    return scaling + PLAIN


BILINEAR = [
    (bilinear(), (20, 30, 40), math.sqrt(6 / (600 + 40 * 2 * 600 / 50))),
    (bilinear("torch"), (25, 40, 50), 1 / 5),
    (bilinear("torch", in_axis=(-2, -1), out_axis=-3), (50, 25, 40), 1 / 5),
    (bilinear(fans=(2.0, 4.0)), (20, 30, 40), 1.0),
]
"""Initializer, shape and limit."""
