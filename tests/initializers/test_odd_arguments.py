"""Arguments that are odd but plausible: wide dtypes without x64, NumPy and JAX scalars, paths."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinit import initializers
from jinit.initializers import calculate_gain, reinit, zeros

key = jax.random.key(0)


@pytest.mark.parametrize(
    ("wide", "narrow"), [("float64", "float32"), ("complex128", "complex64"), (float, "float32")]
)
def test_without_x64_a_wide_dtype_is_the_narrow_one(wide, narrow):
    for init in (
        initializers.normal(mean=2.0, std=3.0),
        initializers.xavier_normal(),
        initializers.eye(),
    ):
        values = init(key, (5, 7), wide)
        assert values.dtype == narrow
        np.testing.assert_array_equal(values, init(key, (5, 7), narrow))


@pytest.mark.thorough
def test_without_x64_a_normal_in_float64_has_no_infinities():
    # With the lower end of float64 rounded to -1, these draws held three (8 M entries a seed).
    values = [initializers.normal()(jax.random.key(seed), (8_000_000,), float) for seed in range(4)]
    assert all(bool(jnp.isfinite(each).all()) for each in values)


def test_scalars_of_numpy_and_jax_are_numbers():
    shape = (4, 6)
    pairs = [
        (initializers.lecun_normal(in_axis=np.int64(0)), initializers.lecun_normal(in_axis=0)),
        (initializers.orthogonal(out_axis=np.int32(1)), initializers.orthogonal(out_axis=1)),
        (initializers.lecun_normal(fans=np.array([3, 4])), initializers.lecun_normal(fans=(3, 4))),
        (
            initializers.kaiming_normal(negative_slope=jnp.float32(0.5)),
            initializers.kaiming_normal(negative_slope=np.float32(0.5)),
        ),
    ]
    for odd, usual in pairs:
        assert odd == usual
        np.testing.assert_array_equal(odd(key, shape), usual(key, shape))
    assert initializers.dirac(jnp.int32(2)) == initializers.dirac(2)
    assert calculate_gain("leaky_relu", jnp.float32(0.5)) == calculate_gain("leaky_relu", 0.5)


def test_what_is_no_number_or_name_is_refused():
    with pytest.raises(TypeError, match="integer"):
        initializers.dirac(1.5)
    with pytest.raises(ValueError, match=r"\['relu'\]"):
        calculate_gain(["relu"])
    with pytest.raises(ValueError, match=r"high - low must fit float32, got \[-3e\+38, 3e\+38\)"):
        initializers.uniform(low=-3e38, high=3e38)


@pytest.mark.parametrize("init", [initializers.delta_orthogonal(), initializers.dirac()])
def test_an_empty_field_gives_an_empty_kernel(init):
    assert init(key, (0, 2, 4)).shape == (0, 2, 4)


class Projections(NamedTuple):
    query: jax.Array
    value: jax.Array


def test_a_field_named_value_is_part_of_the_path():
    tree = {"attention": Projections(jnp.ones(2), jnp.ones(2))}
    drawn = reinit(key, tree, {"attention/value": zeros()})
    assert drawn["attention"].value.sum() == 0
    assert drawn["attention"].query.sum() == 2
    assert reinit(key, tree["attention"], {"value": zeros()}).value.sum() == 0


def test_leaves_that_are_no_arrays_of_numbers_are_named():
    text = (
        "leaves that cannot be drawn:\n"
        "  activation: it is not an array of numbers but function; narrow the pattern\n"
        "  key: it is not an array of numbers but key<fry>; narrow the pattern"
    )
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        reinit(key, {"key": key, "w": jnp.ones(2), "activation": len.__class__.mro}, {"*": zeros()})
    assert str(raised.value).splitlines()[0] == text.splitlines()[0]
    shown = str(raised.value)
    assert "key: it is not an array of numbers but key<fry>; narrow the pattern" in shown
    assert "activation: it is not an array of numbers but" in shown
