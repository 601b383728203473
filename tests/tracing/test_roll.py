"""Rolled functions against the functions they were made of."""

from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jinit.tracing import roll, trace
from jinit.tracing.rolling.repeats import repeats
from tests.tracing.rolling import check, lengths, run, size

L, WIDTH = 6, 4
X = jax.random.normal(jax.random.key(1), (3, WIDTH))


def weights(count=L, seed=0, width=WIDTH):
    keys = jax.random.split(jax.random.key(seed), count)
    return [jax.random.normal(key, (width, width)) / 2 for key in keys]


def layers(sizes):
    keys = jax.random.split(jax.random.key(0), len(sizes) - 1)
    return [
        {"w": jax.random.normal(key, (i, o)) / i**0.5, "b": 0.1 * jnp.arange(o)}
        for key, i, o in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def dense(layer, x):
    return x @ layer["w"] + layer["b"][None]


def mlp(params, x):
    for layer in params[:-1]:
        x = jax.nn.relu(dense(layer, x))
    return dense(params[-1], x)


def chain(ws, x):
    for w in ws:
        x = jnp.tanh(x @ w)
    return x


def test_the_layers_between_the_first_and_the_last_become_one_loop():
    params = layers([3, *[WIDTH] * L, 2])
    rolled = check(mlp, params, X[:, :3])
    assert lengths(rolled) == [L - 1]
    # leaves are b0, w0, b1, w1, ...: a block holds its own bias, not that of the layer before
    inner = range(1, L)
    assert set(rolled.groups) == {
        (0,), (1,), tuple(2 * i for i in inner), tuple(2 * i + 1 for i in inner),
        (2 * L,), (2 * L + 1,),
    }  # fmt: skip


def test_stacking_puts_blocks_first_and_unstacking_undoes_it():
    ws = weights()
    rolled = roll(trace(chain, ws, X), [True] * L, least_saved=1)
    (stacked,) = rolled.stack(ws)
    np.testing.assert_array_equal(stacked, np.stack(ws))
    rates = rolled.unstack([jnp.arange(float(L))])
    assert [float(rate) for rate in rates] == list(range(L))


def test_where_nothing_repeats_the_function_is_returned_as_it_was():
    traced = trace(lambda p, x: jnp.sin(x @ p[0]).sum() * p[1], (weights(1)[0], jnp.ones(())), X)
    rolled = roll(traced, [True, True], least_saved=1)
    assert rolled.traced is traced
    assert (rolled.groups, rolled.loops) == (((0,), (1,)), frozenset())


def test_a_loop_that_would_save_too_little_is_not_made():
    traced = trace(chain, weights(), X)  # two equations a layer
    assert not roll(traced, [True] * L, least_saved=2 * (L - 1) + 1).loops
    assert roll(traced, [True] * L, least_saved=2 * (L - 1)).loops
    assert not roll(trace(chain, weights(2), X), [True] * 2, least_saved=1).loops


@pytest.mark.thorough
def test_the_rolled_program_does_not_grow_with_depth():
    def rolled(depth):
        traced = trace(mlp, layers([3, *[WIDTH] * depth, 2]), X[:, :3])
        return roll(traced, [True] * (2 * depth + 2))

    assert {size(rolled(depth)) for depth in (8, 16, 64)} == {size(rolled(32))}
    assert size(rolled(64)) < 20  # the first and the last layer, and a loop over one


def test_repeats_are_found_whole_and_the_largest_first():
    labels = np.array([9, *[1, 2] * 4, 1, 8, *[5, 6, 7] * 3, 4])
    runs = repeats(labels, np.ones(len(labels), int), 1)
    assert [(run.start, run.stop, run.period) for run in runs] == [(1, 10, 2), (11, 20, 3)]
    assert repeats(labels, np.ones(len(labels), int), 7) == []


def residual(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w)
    return x


def every_layer_to_the_end(ws, x):
    total = 0.0
    for w in ws:
        x = jnp.tanh(x @ w)
        total = total + x.sum()  # in the first block to a literal
    return total, x


def outputs_of_all(ws, x):
    seen = []
    for w in ws:
        x = jnp.tanh(x @ w)
        seen.append(jnp.abs(x))
    return seen


def unet(ws, x):
    skips = []
    for w in ws[: L // 2]:
        x = jnp.tanh(x @ w)
        skips.append(x)
    x = jnp.exp(-x)
    for w, skip in zip(ws[L // 2 :], reversed(skips), strict=True):
        x = jnp.sin(x @ w) + skip
    return x


def two_runs(ws, x):
    for w in ws[: L // 2]:
        x = jnp.tanh(x @ w)
    x = x.sum(0, keepdims=True)
    for w in ws[L // 2 :]:
        x = jnp.sin(w @ x.T).T
    return x


def upfront_cast(ws, x):
    return chain([w.astype(jnp.bfloat16).astype(jnp.float32) for w in ws], x)


def reparametrized(ws, x):
    directions = [w / jnp.linalg.norm(w, axis=0, keepdims=True) for w in ws]
    return chain(directions, x)


def in_a_jit(ws, x):
    return jax.jit(chain)(ws, x)


def jitted_layers(ws, x):
    layer = jax.jit(lambda w, x: jnp.tanh(x @ w))
    for w in ws:
        x = layer(w, x)
    return x


def rematerialized(ws, x):
    for w in ws:
        x = jax.checkpoint(lambda w, x: jnp.tanh(x @ w) @ w)(w, x)
    return x


def branched(ws, x):
    for w in ws:
        x = jax.lax.cond(x.sum() > 0, lambda x, w=w: jnp.tanh(x @ w), lambda x, w=w: x - w[:1], x)
    return x


def looped(ws, x):
    for w in ws:
        x = jax.lax.fori_loop(0, 2, lambda i, x, w=w: jnp.tanh(x @ w), x)
    return x


@jax.custom_vjp
def doubled_slope(x):
    return jnp.sin(x)


doubled_slope.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (2 * ct * jnp.cos(x),))


@jax.custom_vjp
def tripled_slope(x):
    return jnp.sin(x)


tripled_slope.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (3 * ct * jnp.cos(x),))


@jax.custom_jvp
def clipped(x):
    return jnp.clip(x, -1, 1)


clipped.defjvp(lambda p, t: (clipped(p[0]), t[0]))


def custom_rules(ws, x):
    for w in ws:
        x = doubled_slope(clipped(x @ w))
    return x


def batched_rules(ws, x):
    def one(row):
        for w in ws:
            row = jax.nn.relu(clipped(row @ w)) + 0.1
        return row

    return jax.vmap(one)(x)


def two_carried(ws, x):
    memory = jnp.zeros_like(x)
    for w in ws:
        memory = 0.5 * memory + x
        x = jnp.tanh(x @ w) - memory
    return x, memory


def inner_loops(ws, x):
    for w in ws:
        x, sums = jax.lax.scan(lambda c, _, w=w: (jnp.tanh(c @ w), c.sum()), x, length=3)
        x = x + sums.mean()
    return x


def weak_typed(ws, x):
    level = 1.0
    for w in ws:
        level = level * 0.5 + 1.0
        level = jnp.sin(level)  # a weakly typed scalar on its way through the blocks
        x = jnp.tanh(x @ w) * level
    return x, level


def whole_numbers(ws, x):
    count, mask = jnp.int32(1), x > 0
    for w in ws:
        count, mask = (3 * count) % 7, ~mask
        x = jnp.where(mask, x, jnp.tanh(x @ w)) / count
    return x, count, mask


def shared_with_the_next(ws, x):
    for w, other in pairwise(ws):
        x = jnp.tanh(x @ w) @ other  # so both uses of one weight stand in one row
    return x


ROLLED = {
    "residual": (residual, [L]),
    "every_layer_to_the_end": (every_layer_to_the_end, [L - 1]),
    "outputs_of_all": (outputs_of_all, [L]),
    "unet": (unet, [3, 3]),
    "two_runs": (two_runs, [3, 3]),
    "upfront_cast": (upfront_cast, [L]),
    "reparametrized": (reparametrized, [L]),
    "in_a_jit": (in_a_jit, [L]),
    "jitted_layers": (jitted_layers, [L]),
    "rematerialized": (rematerialized, [L]),
    "branched": (branched, [L]),
    "looped": (looped, [L]),
    "custom_rules": (custom_rules, [L]),
    "batched_rules": (batched_rules, [L]),
    "two_carried": (two_carried, [L - 1]),
    "inner_loops": (inner_loops, [L]),
    "weak_typed": (weak_typed, [L - 1]),
    "whole_numbers": (whole_numbers, [L - 1]),
    "shared_with_the_next": (shared_with_the_next, [L - 2]),
}


@pytest.mark.cases
@pytest.mark.parametrize("name", ROLLED)
def test_equal_blocks_are_rolled_and_give_the_same_values_and_gradients(name):
    fn, expected = ROLLED[name]
    rolled = check(fn, weights(), X, least_saved=1)
    assert lengths(rolled) == expected
    assert sorted(len(group) for group in rolled.groups if len(group) > 1) == sorted(expected)


def test_a_weight_of_all_blocks_is_a_constant_of_the_loop():
    def tied(p, x):
        twice = 2 * p["tied"]
        for w in p["ws"]:
            x = jnp.tanh(x @ twice) @ w + x @ p["tied"]
        return x

    rolled = check(tied, {"tied": weights(1, 5)[0], "ws": weights()}, X)
    assert set(rolled.groups) == {(0,), tuple(range(1, L + 1))}


def test_a_recurrence_written_out_is_rolled_with_its_one_weight():
    def recurrent(w, xs):
        h = jnp.zeros((1, WIDTH))
        for x in xs:
            h = jnp.tanh(h @ w + x[None])
        return h

    rolled = check(recurrent, weights(1)[0], list(jnp.stack([X[0], X[1], -X[0], X[2], -X[2]])))
    assert lengths(rolled) == [4]  # the first step, on zeros, depends on no input
    assert rolled.groups == ((0,),)


def test_the_block_that_differs_stays_between_two_loops():
    def odd_one(ws, x):
        for i, w in enumerate(ws):
            x = jnp.tanh(x @ w) if i != 4 else jnp.tanh(jnp.sin(x @ w))
        return x

    rolled = check(odd_one, weights(9), X, least_saved=1)
    assert lengths(rolled) == [4, 4]
    assert (4,) in rolled.groups


def test_blocks_that_alternate_are_rolled_in_pairs():
    def alternate(ws, x):
        for i, w in enumerate(ws):
            x = jnp.tanh(x @ w) if i % 2 else jnp.sin(x @ w)
        return x

    rolled = check(alternate, weights(8), X)
    assert lengths(rolled) == [4]
    assert set(rolled.groups) == {(0, 2, 4, 6), (1, 3, 5, 7)}


@pytest.mark.cases
def test_whole_numbers_of_each_block_are_scanned(make_key):
    """As those that Flax folds into a key, a different one for each layer."""

    def noisy(ws, x, key):
        for i, w in enumerate(ws):
            x = jnp.tanh(x @ w) + jax.random.normal(jax.random.fold_in(key, 17 * i + 5), x.shape)
        return x

    rolled = check(noisy, weights(), X, make_key(3))
    assert lengths(rolled) == [L]
    assert len(rolled.traced.jaxpr.eqns) == 1


@pytest.mark.thorough
def test_whole_numbers_in_rematerialized_blocks_are_scanned():
    def noisy(ws, x, key):
        for i, w in enumerate(ws):

            def layer(w, x, key, i=i):
                noise = jax.random.normal(jax.random.fold_in(key, i), x.shape)
                return jnp.tanh(x @ w) + noise

            x = jax.checkpoint(layer)(w, x, key)
        return x

    rolled = check(noisy, weights(), X, jax.random.key(3))
    assert lengths(rolled) == [L]
    ((path,),) = rolled.loops
    body = rolled.traced.jaxpr.eqns[path].params["jaxpr"]
    names = [e.primitive.name for e in getattr(body, "jaxpr", body).eqns]
    assert names in (["checkpoint"], ["remat2"])


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["chained", "listed", "indexed"])
def test_split_keys_reach_their_blocks(how, make_key):
    def noisy(ws, x, key):
        keys = jax.random.split(key, len(ws))
        listed = list(keys)
        for i, w in enumerate(ws):
            if how == "chained":
                key, own = jax.random.split(key)
            else:
                own = listed[i] if how == "listed" else keys[i]
            x = jnp.tanh(x @ w) + jax.random.normal(own, x.shape)
        return x

    assert lengths(check(noisy, weights(), X, make_key(3))) == [L]


def test_variables_that_are_not_trained_are_stacked_wherever_they_are_used():
    """Whole numbers in the state, read by a block and handed on: stacked in the program."""

    def counting(v, x):
        for w, count in zip(v["w"], v["count"], strict=True):
            x = jnp.tanh(x @ w) / count
        return x, [count + 1 for count in v["count"]], v["count"]

    variables = {"w": weights(), "count": [jnp.int32(i + 1) for i in range(L)]}
    rolled = check(counting, variables, X, trainable=[False] * L + [True] * L)
    assert lengths(rolled) == [L]
    assert set(rolled.groups) == {*((i,) for i in range(L)), tuple(range(L, 2 * L))}


def moving_means(v, x):
    means = []
    for w, mean in zip(v["w"], v["mean"], strict=True):
        x = x @ w
        means.append(0.9 * mean + 0.1 * x.mean(0))
        x = jnp.tanh(x - x.mean(0, keepdims=True))
    return x, means


def test_updated_statistics_come_out_block_by_block():
    variables = {"w": weights(), "mean": [w[0] for w in weights(L, 9)]}
    rolled = check(moving_means, variables, X, trainable=[False] * L + [True] * L)
    assert lengths(rolled) == [L]
    assert set(rolled.groups) == {tuple(range(L)), tuple(range(L, 2 * L))}


def tied_to_the_next(ws, x):
    for w, other in pairwise(ws):
        x = jnp.sin(x @ other) + jnp.tanh(x @ w)  # in no row are both uses of a weight
    return x


def penalty(ws, x):
    return chain(ws, x), sum((w**2).sum() for w in ws)


def penalty_on_the_cast(ws, x):
    low = [w.astype(jnp.bfloat16).astype(jnp.float32) for w in ws]
    return chain(low, x), low


def stiffness(ws, x):
    for i, w in enumerate(ws):
        x = jnp.tanh(x @ w * (1.0 + 0.1 * i))
    return x


def static_parameter(ws, x):
    for i, w in enumerate(ws):
        x = jnp.tanh(jnp.roll(x @ w, i, axis=1) if i else x @ w)
    return x


def sizes_of_the_others(ws, x):
    scales = [jnp.sum(w**2) for w in ws]  # of parameters alone: must not be stacked
    order = [*ws[1:], ws[0]]
    for w, scale in zip(order, scales, strict=True):
        x = jnp.tanh(x @ w) * scale
    return x


def different_rules(ws, x):
    for i, w in enumerate(ws):
        x = (doubled_slope, tripled_slope)[i % 3 == 0](x @ w)
    return x


def printing(ws, x):
    for w in ws:
        x = jnp.tanh(x @ w)
        jax.debug.callback(lambda s: None, x.sum())
    return x


LEFT = {
    "tied_to_the_next": tied_to_the_next,
    "penalty": penalty,
    "penalty_on_the_cast": penalty_on_the_cast,
    "stiffness": stiffness,
    "static_parameter": static_parameter,
    "sizes_of_the_others": sizes_of_the_others,
    "printing": printing,
}


@pytest.mark.cases
@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_certainly_equal_is_left(name):
    rolled = check(LEFT[name], weights(), X, least_saved=1)
    assert rolled.loops == frozenset()
    assert all(len(group) == 1 for group in rolled.groups)


def test_a_custom_rule_counts_and_not_only_its_values():
    rolled = check(different_rules, weights(9), X, least_saved=1)
    assert lengths(rolled) == [3]  # every third has the other rule


def test_a_block_whose_weight_is_used_elsewhere_is_left_out():
    def one_more_use(ws, x):
        return chain(ws, x), jnp.sum(ws[4] ** 2)

    rolled = check(one_more_use, weights(9), X, least_saved=1)
    assert lengths(rolled) == [4, 4]
    assert (4,) in rolled.groups


def test_equations_in_another_order_are_another_block():
    def reordered(ws, x):
        for i, w in enumerate(ws):
            parts = [lambda x=x: jnp.sin(x), lambda x=x: jnp.cos(x)]
            values = [part() for part in (parts if i % 4 else parts[::-1])]
            s, c = values if i % 4 else values[::-1]
            x = (s + 2 * c) @ w
        return x

    rolled = check(reordered, weights(7), X, least_saved=1)
    assert lengths(rolled) == [3]


def test_a_literal_that_is_nan_or_a_negative_zero_is_told_from_others():
    def zeros(ws, x):
        for i, w in enumerate(ws):
            x = jnp.tanh(x @ w)
            x = x + jnp.where(x > 2.0, 0.0 if i % 2 else -0.0, jnp.copysign(1.0, -0.0))
        return x

    check(zeros, weights(), X)


def test_an_existing_scan_is_left_alone_beside_one_that_is_made():
    def both(p, x):
        x, _ = jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p["scanned"])
        return chain(p["ws"], x)

    rolled = check(both, {"scanned": jnp.stack(weights(3, 7)), "ws": weights()}, X)
    names = [e.primitive.name for e in rolled.traced.jaxpr.eqns]
    assert names == ["scan", "scan"]
    assert rolled.loops == {(1,)}


def test_lookup_in_tables_of_each_block():
    def embed(tables, tokens):
        x = jnp.zeros((len(tokens), WIDTH))
        for table in tables:
            x = jnp.sin(x) + table[tokens]
        return x

    rolled = check(embed, weights(), jnp.array([0, 3, 1, 1]))
    assert lengths(rolled) == [L]


def test_blocks_beside_each_other_are_rolled_too():
    def heads(ws, x):
        return sum(jnp.tanh(x @ w) for w in ws)

    assert lengths(check(heads, weights(), X)) == [L - 1]  # the first is added to a literal 0


def test_closed_over_arrays_of_each_block_are_stacked():
    masks = [jax.random.bernoulli(jax.random.key(i), shape=X.shape) for i in range(L)]

    def masked(ws, x):
        for w, mask in zip(ws, masks, strict=True):
            x = jnp.where(mask, jnp.tanh(x @ w), x)
        return x

    assert lengths(check(masked, weights(), X)) == [L]


def test_a_host_array_made_anew_in_every_block_is_one_constant():
    def masked(ws, x):
        for w in ws:
            x = jnp.tanh(x @ w) * np.tri(3, WIDTH, dtype=np.float32)
        return x

    rolled = check(masked, weights(), X)
    assert lengths(rolled) == [L]
    assert len(rolled.traced.jaxpr.eqns) == 1


@pytest.mark.thorough
def test_it_is_as_exact_in_float64():
    with jax.enable_x64(True):
        ws = [jnp.asarray(w, jnp.float64) for w in weights()]
        check(residual, ws, jnp.asarray(X, jnp.float64), tolerance=1e-13)


@pytest.mark.cases
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_stays(dtype):
    ws = [w.astype(dtype) for w in weights()]
    rolled = check(residual, ws, X.astype(dtype), tolerance=5e-2)  # fusions round differently
    assert rolled.traced.out_avals[0].dtype == dtype


def test_it_runs_under_vmap_and_eval_shape():
    ws, batch = weights(), jnp.stack([X, -X, 2 * X])
    rolled = roll(trace(residual, ws, X), [True] * L, least_saved=1)
    mapped = jax.vmap(lambda x: run(rolled, ws, x))(batch)
    np.testing.assert_allclose(mapped, residual(ws, batch), rtol=1e-5)
    assert jax.eval_shape(lambda x: run(rolled, ws, x), X) == jax.eval_shape(residual, ws, X)


def test_loops_stay_loops_where_jit_is_disabled():
    traced = trace(residual, weights(), X)
    with jax.disable_jit():
        rolled = roll(traced, [True] * L, least_saved=8)
    assert lengths(rolled) == [L]


@pytest.mark.thorough
def test_a_long_computation_on_parameters_alone_is_no_deep_recursion():
    def powers(ws, x):
        root = ws[0]
        for _ in range(500):
            root = 0.5 * (root + jnp.sin(root))
        return residual(ws[1:], x @ root)

    rolled = check(powers, weights(), X)
    assert len(rolled.loops) == 2
    assert lengths(rolled)[1] == L - 1
    assert size(rolled) < 60  # most of the 500 steps are one loop


def test_a_weakly_typed_argument_stays_weak():
    def counted(ws, x, n):
        for w in ws:
            n = 3 * n + 1
            x = jnp.tanh(x @ w) / (1 + n % 5)
        return x, n

    rolled = roll(trace(counted, weights(), X, 3), [True] * L, least_saved=8)
    assert len(rolled.loops) == 1
    assert rolled.traced.out_avals[1].weak_type
    assert int(run(rolled, weights(), X, 3)[1]) == counted(weights(), X, 3)[1]


def test_explicitly_sharded_variables():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))

    def gathered(ws, x):
        for w in ws:
            x = jax.sharding.reshard(jnp.tanh(x @ w), P())
        return x

    with jax.set_mesh(mesh):
        ws = [jax.device_put(w, NamedSharding(mesh, P(None, "d"))) for w in weights()]
        x = jax.device_put(X, NamedSharding(mesh, P()))
        rolled = roll(trace(gathered, ws, x), [True] * L, least_saved=8)
        assert lengths(rolled) == [L]
        assert rolled.traced.in_avals[0].sharding.spec == P(None, None, "d")
        result = jax.jit(lambda ws: run(rolled, ws, x))(ws)
        np.testing.assert_allclose(result, gathered(ws, x), rtol=1e-5)


def test_functions_can_be_rolled_while_they_are_traced():
    @jax.jit
    def outer(ws, x, shift):
        def model(ws, x):
            return residual(ws, x) + shift  # closed over, and being traced itself

        rolled = roll(trace(model, ws, x), [True] * L, least_saved=1)
        assert lengths(rolled) == [L]
        return run(rolled, ws, x)

    np.testing.assert_allclose(outer(weights(), X, 2.0), residual(weights(), X) + 2, rtol=1e-5)


@pytest.mark.thorough
def test_variables_over_several_devices():
    mesh = Mesh(np.array(jax.devices()[:4]), ("d",))
    sharding = NamedSharding(mesh, P(None, "d"))
    ws = [jax.device_put(w, sharding) for w in weights()]
    rolled = check(residual, ws, jax.device_put(X, NamedSharding(mesh, P())))
    (stacked,) = jax.jit(rolled.stack)(ws)
    assert stacked.sharding.is_equivalent_to(NamedSharding(mesh, P(None, None, "d")), 3)


@pytest.mark.thorough
def test_a_pinned_sharding_in_each_block_stays():
    mesh = Mesh(np.array(jax.devices()[:4]), ("d",))
    pinned = NamedSharding(mesh, P(None, "d"))

    def constrained(ws, x):
        for w in ws:
            x = jax.lax.with_sharding_constraint(jnp.tanh(x @ w), pinned)
        return x

    rolled = check(constrained, weights(), X)
    assert lengths(rolled) == [L - 1]  # the type of the first block's input has no mesh
    assert jax.jit(lambda ws: run(rolled, ws, X))(weights()).sharding.is_equivalent_to(pinned, 2)


def test_the_source_lines_of_the_block_are_kept():
    rolled = roll(trace(chain, weights(), X), [True] * L, least_saved=1)
    ((path,),) = rolled.loops
    body = rolled.traced.jaxpr.eqns[path].params["jaxpr"]
    for equation in getattr(body, "jaxpr", body).eqns:
        assert "test_roll.py" in str(equation.source_info.traceback)


def test_blocks_on_a_mesh_that_is_not_set_become_a_loop():
    """There the types of some outputs have the mesh, and those of a loop have none."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(6):
                x = x + nn.Dense(4)(nn.gelu(nn.Dense(4)(nn.LayerNorm()(x))))
            return nn.Dense(3)(x)

    x = jnp.ones((2, 4))
    variables = Net().init(jax.random.key(0), x)
    mesh = Mesh(np.array(jax.devices()[:4]), ("d",))
    placed = jax.device_put(variables, NamedSharding(mesh, P()))
    sizes = []
    for tree in (variables, placed):
        traced = trace(Net().apply, tree, x)
        trainable = [True] * len(jax.tree.leaves(tree)) + [False]
        sizes.append(len(roll(traced, trainable).traced.jaxpr.eqns))
    assert sizes[0] == sizes[1] < len(traced.jaxpr.eqns) / 2
