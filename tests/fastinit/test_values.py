"""Values are those of ``jax.jit(init_fn)``: every distribution, dtype and kind of key.

With ``--optimize`` bit for bit; ``test_bits`` runs those that are marked ``exact`` only so.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from jax.nn import initializers as of_jax

from jinit import initializers as of_jinit
from tests.fastinit.reference import check, ways

INITIALIZERS = {
    "zeros": of_jax.zeros,
    "ones": of_jax.ones,
    "constant": of_jax.constant(0.3),
    "uniform": of_jax.uniform(0.3),
    "uniform(1)": of_jax.uniform(1.0),
    "normal": of_jax.normal(0.3),
    "truncated_normal": of_jax.truncated_normal(0.3, lower=-1.5, upper=3.0),
    "glorot_uniform": of_jax.glorot_uniform(),
    "glorot_normal": of_jax.glorot_normal(),
    "lecun_uniform": of_jax.lecun_uniform(),
    "lecun_normal": of_jax.lecun_normal(),
    "he_uniform": of_jax.he_uniform(),
    "he_normal": of_jax.he_normal(),
    "variance_scaling": of_jax.variance_scaling(2.0, "fan_avg", "normal"),
    "jinit.normal": of_jinit.normal(std=0.3),
    "jinit.normal(mean)": of_jinit.normal(mean=0.7, std=0.3),
    "jinit.uniform": of_jinit.uniform(low=-0.3, high=0.7),
    "jinit.uniform(wide)": of_jinit.uniform(low=-0.3, high=1.9),
    "jinit.truncated_normal": of_jinit.truncated_normal(std=0.3),
    "jinit.kaiming_uniform": of_jinit.kaiming_uniform(),
    "jinit.kaiming_normal": of_jinit.kaiming_normal(truncated=True),
    "jinit.xavier_uniform": of_jinit.xavier_uniform(gain=5 / 3),
    "jinit.xavier_normal": of_jinit.xavier_normal(),
    "jinit.lecun_normal": of_jinit.lecun_normal(),
    "jinit.variance_scaling": of_jinit.variance_scaling(2.0, "fan_avg", "truncated_normal"),
    "jinit.constant": of_jinit.constant(0.3),
}
COMPUTED = {
    "orthogonal": (of_jax.orthogonal(1.5), (6, 4)),
    "orthogonal, wide": (of_jax.orthogonal(), (3, 2, 12)),
    "delta_orthogonal": (of_jax.delta_orthogonal(), (3, 3, 4, 8)),
    "jinit.orthogonal": (of_jinit.orthogonal(), (6, 4)),
    "jinit.identity": (of_jinit.identity(), (5, 5)),
    "jinit.sparse": (of_jinit.sparse(0.5), (6, 4)),
}
SHAPES = ((31, 17), (3, 3, 5, 7))


def all_of(shape, dtype):
    """Draws all of them, each with a key of its own."""

    def init_fn(key):
        keys = random.split(key, len(INITIALIZERS))
        pairs = zip(INITIALIZERS.items(), keys, strict=True)
        return {name: init(k, shape, dtype) for (name, init), k in pairs}

    return init_fn


@pytest.mark.cases
@pytest.mark.cases
def test_initializers(make_key):
    init = check(all_of(SHAPES[0], jnp.float32), make_key(3))
    assert ways(init) == {"drawn": len(INITIALIZERS) - 4, "filled": 4}


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [SHAPES[1], (1, 1), (40, 3000)])
def test_initializers_of_shapes(shape):
    check(all_of(shape, jnp.float32), random.key(4))


@pytest.mark.cases
@pytest.mark.cases
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_initializers_in_half(dtype):
    check(all_of(SHAPES[0], jnp.dtype(dtype)), random.key(3), steps=HALF_STEPS)


HALF_STEPS = 1
"""XLA rounds to half in the middle of an expression or not, as it joins operations."""


@pytest.mark.thorough
def test_initializers_in_double():
    with jax.enable_x64(True):
        check(all_of(SHAPES[0], jnp.float64), random.key(3))


@pytest.mark.cases
@pytest.mark.parametrize("name", COMPUTED)
def test_computed_initializers(name):
    init_fn, shape = COMPUTED[name]
    init = check(lambda key: init_fn(key, shape, jnp.float32), random.key(3), relative=1e-6)
    assert ways(init).keys() <= {"computed", "copied"}


def numbers_of(dtype):
    return {
        "normal": lambda key: random.normal(key, (31, 17), dtype),
        "uniform": lambda key: random.uniform(key, (31, 17), dtype),
        "scaled": lambda key: 0.037 * random.normal(key, (31, 17), dtype),
        "truncated": lambda key: random.truncated_normal(key, -2, 2, (31, 17), dtype),
    }


def test_draws_of_dtypes():
    def init_fn(key):
        dtypes = ("float32", "bfloat16", "float16")
        return {d: {name: draw(key) for name, draw in numbers_of(d).items()} for d in dtypes}

    assert ways(check(init_fn, random.key(5))) == {"drawn": 12}


@pytest.mark.thorough
def test_draws_of_float64():
    with jax.enable_x64(True):
        for draw in numbers_of(jnp.float64).values():
            check(draw, random.key(5))


def test_draws_of_complex64():
    def init_fn(key):
        drawn = random.normal(key, (31, 17), jnp.complex64)
        return drawn, drawn * (0.3 + 0.1j), jnp.full((3, 4), 1 + 2j) * (2 - 1j)

    check(init_fn, random.key(5))


INTEGERS = {
    "randint": lambda key: random.randint(key, (31, 17), -5, 7),
    "randint, wide": lambda key: random.randint(key, (31, 17), -100, 2**30),
    "randint of 8": lambda key: random.randint(key, (31, 17), 0, 200, jnp.uint8),
    "randint of 16": lambda key: random.randint(key, (31, 17), -5, 200, jnp.int16),
    "bits": lambda key: random.bits(key, (31, 17)),
    "bits of 8": lambda key: random.bits(key, (31, 17), "uint8"),
    "bits of 16": lambda key: random.bits(key, (31, 17), "uint16"),
    "bernoulli": lambda key: random.bernoulli(key, 0.3, (31, 17)),
    "rademacher": lambda key: random.rademacher(key, (31, 17)),
    "rounded": lambda key: (100 * random.normal(key, (31, 17))).astype(jnp.int8),
}


def test_draws_of_integers():
    def init_fn(key):
        return {name: draw(key) for name, draw in INTEGERS.items()}

    assert ways(check(init_fn, random.key(5))) == {"drawn": len(INTEGERS)}


@pytest.mark.thorough
def test_draws_of_wide_integers():
    with jax.enable_x64(True):
        check(lambda key: random.randint(key, (31, 17), -(2**60), 2**61), random.key(5))
        check(lambda key: random.bits(key, (31, 17), "uint64"), random.key(5))


TAILS = ("exponential", "laplace", "cauchy", "gumbel", "logistic", "rayleigh", "maxwell")


@pytest.mark.thorough
def test_draws_of_other_distributions():
    def init_fn(key):
        tails = {name: getattr(random, name)(key, shape=(31, 17)) for name in TAILS[:5]}
        return tails | {"lognormal": random.lognormal(key, shape=(31, 17))}

    assert ways(check(init_fn, random.key(5))) == {"drawn": 6}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "draw",
    [
        lambda key: random.gamma(key, 2.0, (31,)),
        lambda key: random.beta(key, 1.0, 2.0, (31,)),
        lambda key: random.t(key, 3.0, (31,)),
        lambda key: random.poisson(key, 3.0, (31,)),
        lambda key: random.dirichlet(key, jnp.ones(3), (5,)),
        lambda key: random.ball(key, 3, shape=(5,)),
        lambda key: random.multivariate_normal(key, jnp.zeros(3), jnp.eye(3)),
    ],
)
def test_draws_that_are_computed(draw):
    check(draw, random.key(5), relative=1e-6)


SCALES = {
    "a scale of 1 is no factor": lambda key: random.uniform(key, (400,), minval=-0.3, maxval=0.7),
    "two factors": lambda key: random.normal(key, (400,)) * 0.3 * 0.7,
    "factors on both sides": lambda key: 0.3 * (random.uniform(key, (400,)) * 0.1),
    "what is added": lambda key: random.normal(key, (400,)) * 0.3 + 1.0 - 2.0,
    "a divisor": lambda key: random.normal(key, (400,)) / 7.0,
    "no scale": lambda key: 0.0 * random.normal(key, (400,)),
    "beyond the floats": lambda key: random.normal(key, (400,)) * -1e30 * 1e30,
    "below the floats": lambda key: random.normal(key, (400,)) * 1e-39,
    "a sum": lambda key: random.normal(key, (400,)) + random.normal(random.key(9), (400,)),
    "a logarithm": lambda key: jnp.exp(
        random.uniform(key, (400,)) * (jnp.log(0.1) - jnp.log(0.001)) + jnp.log(0.001)
    ),
    "clipped": lambda key: jnp.clip(random.normal(key, (400,)), -1.0, 1.0),
}


def test_scales():
    def init_fn(key):
        return {name: draw(key) for name, draw in SCALES.items()}

    assert ways(check(init_fn, random.key(5))) == {"drawn": len(SCALES)}


def test_three_factors():
    """XLA multiplies the numbers in another order."""
    check(lambda key: random.normal(key, (400,)) / 7.0 * 0.3, random.key(5), steps=1)


def test_scales_that_differ():
    """Many layers share a program, whose numbers are rounded as if they were written in it."""

    def init_fn(key):
        keys = random.split(key, 4)
        return {
            "divided": [random.normal(k, (40,)) / jnp.sqrt(7.0 + n) for n, k in enumerate(keys)],
            "between": [
                random.uniform(k, (40,), minval=-0.3 - n, maxval=0.7 + n)
                for n, k in enumerate(keys)
            ],
            "shifted": [0.1 * n + random.normal(k, (40,)) for n, k in enumerate(keys)],
        }

    check(init_fn, random.key(5))


def test_fills():
    def init_fn(key):
        return {
            "third": jnp.full((3,), 1.0) / 3.0 * jnp.sqrt(jnp.float32(2)),
            "large": jnp.full((400, 500), 0.25),
            "denormal": jnp.full((3,), 1e-39, jnp.float32),
            "nothing": jnp.zeros((0, 4)),
            "truth": jnp.ones((3,), bool),
            "whole": jnp.full((3,), 7) // 2,
            "saturated": jnp.full((3,), 1e20, jnp.float32).astype(jnp.int32),
            "not a number": jnp.full((3,), jnp.nan, jnp.float32).astype(jnp.int16),
            "half": jnp.full((3,), 1.0, jnp.bfloat16) / 3,
            "exp": jnp.exp(jnp.full((40, 50), 0.3)) * 2.0,
        }

    init = check(init_fn, random.key(0))
    assert "drawn" not in ways(init)
    assert not init.report.reason


def test_known_arrays():
    table = np.arange(6000, dtype=np.float32)

    def init_fn(key):
        return {
            "small": jnp.arange(5),
            "large": jnp.arange(5000.0) * 0.1,
            "table": jnp.asarray(table),
            "number": np.float32(3),
            "eye": jnp.eye(40),
            "scaled": random.normal(key, (6000,)) * table,
        }

    check(init_fn, random.key(0))


BITS = {
    **{f"initializers in {d}": all_of(SHAPES[0], jnp.dtype(d)) for d in ("float32", "float16")},
    **{f"a convolution in {d}": all_of(SHAPES[1], jnp.dtype(d)) for d in ("float32", "bfloat16")},
    **{
        f"{name} of {d}": draw
        for d in ("bfloat16", "float16")
        for name, draw in numbers_of(d).items()
    },
    **INTEGERS,
    **SCALES,
}


@pytest.mark.exact
@pytest.mark.parametrize("name", BITS)
def test_bits(name):
    """No test of this file allows for more than rounding; as users compile, there is none."""
    check(BITS[name], random.key(7))


@pytest.mark.exact
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_bits_of_wide_numbers(dtype):
    with jax.enable_x64(True):
        check(lambda key: 0.3 * random.normal(key, (31, 17), dtype), random.key(7))
        if dtype == "float64":
            check(all_of(SHAPES[0], jnp.float64), random.key(7))
