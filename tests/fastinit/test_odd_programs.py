"""Initializations as nobody writes them, and as everybody does once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, random
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jinit import fast_init
from tests.fastinit.reference import assert_same, check, ways
from tests.fastinit.test_shardings import make_mesh


def normal(key, shape=(3, 4)):
    return random.normal(key, shape)


def normals(key, count=3, shape=(3, 4)):
    return [normal(random.fold_in(key, n), shape) for n in range(count)]


def scanned(key, length=5, **options):
    def body(key, _):
        key, mine = random.split(key)
        return key, normal(mine)

    return lax.scan(body, key, None, length=length, **options)


def other(key):
    return random.fold_in(key, 1)


DRAWN = {
    "selected": lambda key: jnp.where(normal(key) > 0, normal(other(key)), 0.0),
    "selected by itself": lambda key: (lambda w: jnp.where(w > 0, w, 2 * w))(normal(key)),
    "dropped": lambda key: normal(key) * random.bernoulli(other(key), 0.3, (3, 4)),
    "indices": lambda key: random.choice(key, 10, (4,)),
    "concatenated": lambda key: jnp.concatenate(normals(key)),
    "concatenated, scaled": lambda key: jnp.concatenate(
        [n * w for n, w in enumerate(normals(key), 2)]
    ),
    "stacked": lambda key: jnp.stack(normals(key)),
    "stacked, reshaped": lambda key: jnp.stack(normals(key)).reshape(9, 4),
    "over keys": lambda key: jax.vmap(normal)(random.split(key, 5)),
    "over keys of two axes": lambda key: jax.vmap(jax.vmap(normal))(random.split(key, (2, 3))),
    "over numbers": lambda key: jax.vmap(lambda n: normal(random.fold_in(key, n)))(jnp.arange(5)),
    "over given numbers": lambda key: jax.vmap(lambda n: normal(random.fold_in(key, n)))(
        jnp.array([3, 1, 4])
    ),
    "a loop": lambda key: lax.fori_loop(
        0, 3, lambda n, w: w + normal(random.fold_in(key, n)), jnp.zeros((3, 4))
    ),
    "scanned": lambda key: scanned(key)[1],
    "scanned within": lambda key: lax.scan(
        lambda k, _: (random.split(k)[0], scanned(k)[1]), key, None, length=3
    )[1],
    "scanned over ones": lambda key: lax.scan(
        lambda n, x: (n + 1.0, x * normal(other(key), (3,))), 0.0, jnp.ones((4, 3))
    )[1],
    "a branch that is known": lambda key: lax.cond(
        jnp.array(True), lambda: normal(key), lambda: jnp.zeros((3, 4))
    ),
    "a gradient": lambda key: jax.grad(lambda w: (w**2).sum())(normal(key)),
    "checkpointed": lambda key: jax.checkpoint(lambda: normal(key))(),
    "a scalar": lambda key: random.normal(key),
    "from a seed of its own": lambda key: normal(random.key(-5)),
    "of whole numbers' bits": lambda key: lax.bitcast_convert_type(
        random.bits(key, (5,)), jnp.float32
    ),
    "not a number": lambda key: jnp.isnan(jnp.log(normal(key))),
}
COMPUTED = {
    "concatenated, of two kinds": lambda key: jnp.concatenate(
        [normal(key), random.uniform(other(key), (3, 4))]
    ),
    "concatenated, of two sizes": lambda key: jnp.concatenate(
        [normal(key), normal(other(key), (5, 4))]
    ),
    "concatenated with zeros": lambda key: jnp.concatenate([normal(key), jnp.zeros((3, 4))]),
    "concatenated with nothing": lambda key: jnp.concatenate(
        [normal(key, (0, 4)), normal(other(key))]
    ),
    "concatenated along the last axis": lambda key: jnp.concatenate(normals(key), 1),
    "stacked along the last axis": lambda key: jnp.stack(normals(key), -1),
    "over keys, to the last axis": lambda key: jax.vmap(normal, out_axes=-1)(random.split(key, 5)),
    "transposed": lambda key: normal(key).T,
    "sliced": lambda key: normal(key)[:2, ::-1],
    "padded": lambda key: jnp.pad(normal(key), 1),
    "written to": lambda key: normal(key).at[0].set(0.0),
    "summed up": lambda key: normal(key).cumsum(0),
    "a permutation": lambda key: random.permutation(key, 20),
    "a permutation of rows": lambda key: random.permutation(key, jnp.arange(12).reshape(4, 3)),
    "a choice without replacement": lambda key: random.choice(key, 10, (4,), replace=False),
    "a categorical": lambda key: random.categorical(key, jnp.zeros(4), shape=(6,)),
    "scanned for long": lambda key: scanned(key, 1500)[1],
    "scanned backwards": lambda key: scanned(key, reverse=True)[1],
    "scanned never": lambda key: scanned(key, 0)[1],
    "until": lambda key: lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, random.split(c[1])[0]), (0, key)
    )[1],
    "a branch that is drawn": lambda key: lax.cond(
        random.bernoulli(key), lambda: normal(key), lambda: random.uniform(key, (3, 4))
    ),
    "a key that is drawn": lambda key: normal(
        lax.cond(random.bits(key) % 2 == 0, lambda: key, lambda: other(key))
    ),
    "a switch": lambda key: lax.switch(
        random.randint(key, (), 0, 2), [lambda: normal(key), lambda: jnp.ones((3, 4))]
    ),
    "normed": lambda key: (lambda w: w / jnp.linalg.norm(w))(normal(key)),
    "bits of another width": lambda key: lax.bitcast_convert_type(
        random.bits(key, (5,)), jnp.uint8
    ),
    "one of many scales": lambda key: normal(key) * jnp.arange(4.0)[None],
}


@pytest.mark.thorough
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("programs", [DRAWN, COMPUTED])
def test_programs(programs, sharded, allow_rank_promotion):
    """All at once: a leaf for each."""

    def init_fn(key):
        return {name: draw(key) for name, draw in programs.items()}

    shardings = NamedSharding(make_mesh(), P()) if sharded else None
    init = check(init_fn, random.key(3), out_shardings=shardings, relative=1e-6)
    if programs is DRAWN and not sharded:
        assert ways(init) == {"drawn": len(DRAWN)}


@pytest.mark.thorough
@pytest.mark.parametrize("name", DRAWN | COMPUTED)
def test_each_program(name, make_key):
    draw = (DRAWN | COMPUTED)[name]
    for shardings in (None, NamedSharding(make_mesh(), P())):
        check(draw, make_key(3), out_shardings=shardings, relative=1e-6)


def test_weights_that_are_shared():
    """Two leaves of one draw are two arrays: one may be donated."""

    def init_fn(key):
        w = normal(key)
        return {"a": w, "b": w, "t": w.T, "twice": 2 * w, "minus": -w}

    init = fast_init(init_fn)
    found = init(random.key(0))
    assert_same(found, jax.jit(init_fn)(random.key(0)))
    found["a"].delete()
    np.testing.assert_array_equal(found["b"], found["t"].T)


@pytest.mark.thorough
def test_leaves_that_depend_on_one_another():
    def init_fn(key):
        scale = random.normal(key)
        return {"s": scale, "w": scale * jnp.ones((4, 3)), "v": scale * normal(other(key))}

    check(init_fn, random.key(0), relative=1e-6)
    check(init_fn, random.key(0), out_shardings=NamedSharding(make_mesh(), P()), relative=1e-6)


def test_keys_as_leaves(make_key):
    def init_fn(key):
        typed = {"fixed": random.key(7), "many": random.split(random.key(1), (2, 3))}
        return typed | {"given": key, "folded": other(key), "split": random.split(key, 3)}

    check(init_fn, make_key(0))
    check(init_fn, make_key(0), out_shardings=NamedSharding(make_mesh(), P()))


def test_numbers_that_give_way():
    """What was made of Python's numbers does not make wide numbers of halves."""

    def init_fn(key):
        return {
            "a": jnp.asarray(1.0),
            "b": jnp.asarray(2) * 1,
            "c": 2.0 * jnp.exp(1.0),
            "d": jnp.full((400, 500), 2.0),
            "w": random.normal(key, (3,)),
        }

    check(init_fn, random.key(0))
    check(init_fn, random.key(0), out_shardings=NamedSharding(make_mesh(), P()))


def test_empty_arrays():
    def init_fn(key):
        return {
            "a": random.normal(key, (0, 4)),
            "b": jnp.zeros((0,)),
            "c": random.randint(key, (3, 0), 0, 3),
            "d": 0.5 * jnp.exp(random.uniform(key, (0,))),
        }

    assert ways(check(init_fn, random.key(0))).keys() <= {"filled", "computed"}


def test_arguments_that_are_returned():
    table = np.arange(5000, dtype=np.float32)

    def init_fn(key, x, table):
        return {"x": x, "table": table, "sum": x + 1, "w": random.normal(key, (3,))}

    check(init_fn, random.key(0), jnp.ones((2, 3)), table)
    check(init_fn, random.key(0), jnp.ones((3,)), table,
          out_shardings=NamedSharding(make_mesh(), P()))  # fmt: skip


def test_an_unhashable_argument():
    class Config:
        __hash__ = None
        width = 3

    assert fast_init(lambda key, c: normal(key, (c.width,)))(random.key(0), Config()).shape == (3,)


def test_keys_of_an_old_form():
    """As the words of a key are kept by NumPy."""
    words = np.array([0, 1], np.uint32)
    assert_same(fast_init(normal)(words), jax.jit(normal)(words))


@pytest.mark.cases
@pytest.mark.parametrize("divisor", [0, 3, -1])
@pytest.mark.parametrize("number", [7, -7, -(2**31)])
def test_whole_numbers_are_divided_as_jit_divides_them(number, divisor):
    def init(key):
        whole = jnp.full((3,), number)
        return {"quotient": whole // divisor, "rest": whole % divisor, "key": random.key_data(key)}

    assert_same(fast_init(init)(random.key(0)), jax.jit(init)(random.key(0)))
