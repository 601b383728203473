"""A step in one call, and the state that a skipped step keeps, in every framework."""

import re

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jinit
from jinit import amp

X = jax.random.normal(jax.random.key(1), (16, 8))
T = jax.random.normal(jax.random.key(2), (16, 4))
STEPS = 5
BAD = (X.at[0].set(jnp.inf), T)

pytestmark = pytest.mark.cases  # of which the quick suite runs the first


class LinenNet(nn.Module):
    """A perceptron with statistics."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(16)(x))))


class NnxNet(nnx.Module):
    """The same, and a random stream."""

    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.last = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


def mean_square(y, t):
    return jnp.mean((y - t) ** 2)


def adam():
    # Of a bias before a norm the gradient is only rounding: without eps it would step all the same.
    return optax.adam(0.01, eps=1e-3)


def initialize(model, *optimizer, level="O2", half="float16"):
    return amp.initialize(model, *optimizer, opt_level=level, half_dtype=half)


def linen_step(level="O2", half="float16"):
    """Returns the step, what it starts from, and the step written out without jinit."""
    net = LinenNet()
    variables = net.init(jax.random.key(0), X)
    apply_fn, tx = initialize(net, adam(), level=level, half=half)

    def loss_of(apply, variables, x, t):
        y, updated = apply(variables, x, mutable=["batch_stats"])
        return mean_square(y, t), updated

    @jax.jit
    def plain(variables, state, x, t):
        params = variables["params"]
        of_params = lambda p: loss_of(net.apply, {**variables, "params": p}, x, t)  # noqa: E731
        (loss, updated), grads = jax.value_and_grad(of_params, has_aux=True)(params)
        updates, state = adam().update(grads, state, params)
        return {**updated, "params": optax.apply_updates(params, updates)}, state, loss

    step = amp.train_step(lambda v, x, t: loss_of(apply_fn, v, x, t), tx)
    params = variables["params"]
    return step, (variables, tx.init(params)), plain, (variables, adam().init(params))


def trees_close(new, old, **tolerances):
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        np.testing.assert_allclose(a, b, **tolerances)


def trees_equal(new, old):
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("level", ["O2", "O0", "O1"])
def test_linen_trains_as_the_step_written_out(level):
    step, ours, plain, theirs = linen_step(level)
    for _ in range(STEPS):
        *ours, loss = step(*ours, X, T)
        *theirs, expected = plain(*theirs, X, T)
    tolerance = 1e-5 if level == "O0" else 5e-3
    np.testing.assert_allclose(loss, expected, rtol=tolerance)
    trees_close(ours[0]["batch_stats"], theirs[0]["batch_stats"], atol=tolerance)


def test_linen_keeps_parameters_optimizer_and_statistics_where_the_step_is_skipped():
    step, ours, *_ = linen_step()
    variables, state, _ = step(*ours, X, T)
    after, skipped, loss = step(variables, state, *BAD)
    assert not np.isfinite(loss)
    trees_equal(after, variables)
    trees_equal(skipped.inner_state, state.inner_state)
    assert skipped.loss_scale == state.loss_scale / 2
    _, _, loss = step(after, skipped, X, T)
    assert np.isfinite(loss)


def nnx_step(level="O2", half="float16"):
    given = NnxNet(nnx.Rngs(0))
    return initialize(given, nnx.Optimizer(given, adam(), wrt=nnx.Param), level=level, half=half)


def loss_fn(model, x, t):
    return mean_square(model(x), t)


@nnx.jit
def written_out(model, optimizer, x, t):
    loss, grads = amp.value_and_grad(loss_fn, optimizer)(model, x, t)
    optimizer.update(model, grads)
    return loss


WAYS = {"train_step": amp.train_step(loss_fn), "written out": written_out}


@pytest.mark.parametrize("step", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("level", ["O2", "O0", "O1", "O3"])
def test_nnx_trains_in_place(level, step):
    model, optimizer = nnx_step(level, half="bfloat16")
    plain = NnxNet(nnx.Rngs(0))
    reference = nnx.Optimizer(plain, adam(), wrt=nnx.Param)

    @nnx.jit
    def plain_step(model, optimizer, x, t):
        loss, grads = nnx.value_and_grad(loss_fn)(model, x, t)
        optimizer.update(model, grads)
        return loss

    for _ in range(STEPS):
        loss, expected = step(model, optimizer, X, T), plain_step(plain, reference, X, T)
    np.testing.assert_allclose(loss, expected, rtol=1e-5 if level == "O0" else 0.03)
    assert model.drop.rngs.count[...] == plain.drop.rngs.count[...] == STEPS
    tolerance = 1e-5 if level == "O0" else 0.01
    np.testing.assert_allclose(model.norm.mean[...], plain.norm.mean[...], atol=tolerance)
    assert optimizer.step[...] == STEPS


@pytest.mark.parametrize("step", WAYS.values(), ids=WAYS.keys())
def test_nnx_keeps_everything_but_its_counters_where_the_step_is_skipped(step):
    model, optimizer = nnx_step()
    step(model, optimizer, X, T)
    kept = nnx.Not(nnx.RngState)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, kept)))
    inner = jax.tree.map(np.asarray, nnx.as_pure(optimizer.opt_state.inner_state))
    scale = optimizer.opt_state.loss_scale[...]
    step(model, optimizer, *BAD)
    trees_equal(nnx.to_pure_dict(nnx.state(model, kept)), before)
    trees_equal(nnx.as_pure(optimizer.opt_state.inner_state), inner)
    assert optimizer.opt_state.loss_scale[...] == scale / 2
    assert model.drop.rngs.count[...] == 2  # another mask at the next try
    assert np.isfinite(step(model, optimizer, X, T))


def test_nnx_keeps_statistics_that_are_arrays_alone():
    class Net(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
            self.mean = nnx.data(jnp.zeros(2))

        def __call__(self, x):
            self.mean = 0.5 * self.mean + 0.5 * x.mean(0)
            return self.linear(x)

    model, tx = amp.initialize(Net(), optax.sgd(0.1), "O2", half_dtype="float16")
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    step = amp.train_step(lambda model, x: (model(x) ** 2).mean() / 1000)
    for scale, mean in ((1.0, 0.5), (jnp.inf, 0.5), (1.0, 0.75)):
        step(model, optimizer, scale * jnp.ones((4, 2)))
        np.testing.assert_array_equal(model.mean, np.full(2, mean))


@pytest.mark.thorough
def test_an_optimizer_that_took_steps_goes_on():
    plain = NnxNet(nnx.Rngs(0))
    reference = nnx.Optimizer(plain, adam(), wrt=nnx.Param)
    plain_loss = nnx.jit(lambda m: loss_fn(m, X, T))
    grads = nnx.grad(lambda m: loss_fn(m, X, T))(plain)
    reference.update(plain, grads)
    model, optimizer = amp.initialize(plain, reference, "O0")
    assert optimizer.step[...] == 1
    trees_equal(nnx.as_pure(optimizer.opt_state.inner_state), nnx.as_pure(reference.opt_state))
    reference.update(plain, grads)
    optimizer.update(model, grads)
    trees_close(nnx.state(model, nnx.Param), nnx.state(plain, nnx.Param), rtol=1e-6)
    assert np.isfinite(plain_loss(model))
    half, optimizer = amp.initialize(plain, reference, "O3", half_dtype="bfloat16")
    trees_equal(nnx.as_pure(optimizer.opt_state.inner_state), nnx.as_pure(reference.opt_state))
    optimizer.update(half, grads)
    assert half.last.kernel[...].dtype == jnp.bfloat16


@pytest.mark.parametrize("level", ["O2", "O0", "O1", "O3"])
def test_equinox_trains_as_its_own_step(level):
    given = eqx.nn.MLP(8, 4, 16, 2, key=jax.random.key(0))
    of_batch = lambda m, x, t: mean_square(jax.vmap(m)(x), t)  # noqa: E731
    model, tx = initialize(given, adam(), level=level, half="bfloat16")
    step = amp.train_step(of_batch, tx)
    state, plain = tx.init(eqx.filter(model, eqx.is_inexact_array)), given
    reference = adam().init(eqx.filter(given, eqx.is_inexact_array))

    @eqx.filter_jit
    def plain_step(model, state, x, t):
        loss, grads = eqx.filter_value_and_grad(of_batch)(model, x, t)
        updates, state = adam().update(grads, state)
        return eqx.apply_updates(model, updates), state, loss

    for _ in range(STEPS):
        model, state, loss = step(model, state, X, T)
        plain, reference, expected = plain_step(plain, reference, X, T)
    assert isinstance(model, eqx.nn.MLP)
    assert model.activation is given.activation
    np.testing.assert_allclose(loss, expected, rtol=1e-5 if level == "O0" else 0.02)


def test_a_step_compiles_once(count_compilations):
    step, ours, *_ = linen_step()
    *ours, _ = step(*ours, X, T)
    model, optimizer = nnx_step()
    nnx_once = amp.train_step(loss_fn)
    nnx_once(model, optimizer, X, T)
    with count_compilations() as compiled:
        step(*ours, X, T)
        nnx_once(model, optimizer, X, T)
    assert compiled == []


def test_new_collections_are_named():
    def moves(variables, x):
        return jnp.mean(x), {"cache": {}, "batch_stats": {}}

    tx = amp.loss_scaling(adam())
    variables = {"params": {"w": jnp.ones(2)}, "batch_stats": {}}
    with pytest.raises(ValueError, match="loss_fn returned the collections cache, which the varia"):
        amp.train_step(moves, tx)(variables, tx.init(variables["params"]), X)


def test_without_an_optimizer():
    with pytest.raises(
        TypeError, match=r"no optimizer, which dict needs: write amp\.train_step\(l"
    ):
        amp.train_step(loss_fn)({"w": jnp.ones(2)}, None)


def test_a_state_of_all_of_flaxs_variables():
    tx = amp.loss_scaling(adam())
    with pytest.raises(ValueError, match="structure") as caught:
        amp.train_step(lambda v, x: jnp.mean(x @ v["params"]["w"]), tx)(
            {"params": {"w": jnp.ones(8)}}, tx.init({"params": {"w": jnp.ones(8)}}), X
        )
    assert (
        "opt_state may be of another tree than what is trained: of Flax variables it is "
        'tx.init(variables["params"]), of an Equinox module '
        "tx.init(eqx.filter(model, eqx.is_inexact_array)), of another tree tx.init(variables)"
    ) in caught.value.__notes__


def haiku_net(x):
    return hk.Linear(4)(hk.BatchNorm(True, True, 0.9)(hk.Linear(16)(x), is_training=True))


def test_haikus_state_is_a_collection():
    pair = hk.transform_with_state(haiku_net)
    params, state = pair.init(jax.random.key(0), X)
    model, tx = initialize(pair, adam())

    def loss(variables, x, t):
        y, state = model.apply(variables["params"], variables["state"], None, x)
        return mean_square(y, t), {"state": state}

    step, opt_state = amp.train_step(loss, tx), tx.init(params)
    variables = {"params": params, "state": state}
    for _ in range(2):
        variables, opt_state, value = step(variables, opt_state, X, T)
    assert float(value) < float(loss({"params": params, "state": state}, X, T)[0])
    counter = variables["state"]["batch_norm/~/mean_ema"]["counter"]
    assert int(counter) == 2
    kept = step(variables, opt_state, *BAD)[0]
    jax.tree.map(np.testing.assert_array_equal, kept, variables)


def test_haikus_pair_is_no_tree_of_parameters():
    pair = hk.transform_with_state(haiku_net)
    model, tx = initialize(pair, adam())
    variables = pair.init(jax.random.key(0), X)
    message = (
        "a step trains all variables but for collections beside params, and not a float is "
        "1/batch_norm/~/mean_ema/counter (int32), 1/batch_norm/~/var_ema/counter (int32): hand "
        'Haiku\'s state over as a collection, {"params": params, "state": state}, and let loss_fn '
        'return (loss, {"state": state})'
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        amp.train_step(lambda v, x: jnp.mean(model.apply(*v, None, x)[0]), tx)(
            variables, tx.init(variables[0]), X
        )


def test_an_nnx_module_takes_an_optimizer_of_nnx():
    network, tx = initialize(NnxNet(nnx.Rngs(0)), adam())
    message = (
        r"^the step of an NNX module is called as step\(model, optimizer, \*batch\), where the "
        r"optimizer is .*: pass nnx\.Optimizer\(model, tx, wrt=nnx\.Param\)$"
    )
    with pytest.raises(TypeError, match=message):
        amp.train_step(lambda m, x: jnp.mean(m(x)))(network, tx, X)


@pytest.mark.parametrize("call", ["init", "update"])
def test_an_equinox_module_with_more_than_arrays(call):
    model = eqx.nn.MLP(8, 4, 8, 1, key=jax.random.key(0))
    arrays = eqx.filter(model, eqx.is_inexact_array)
    tx = amp.loss_scaling(adam())
    message = (
        r"^params must be a tree of arrays, but not an array is params\.activation .*; pass "
        r"eqx\.filter\(model, eqx\.is_inexact_array\)$"
    )
    with pytest.raises(TypeError, match=message):
        tx.init(model) if call == "init" else tx.update(arrays, tx.init(arrays), model)


# where_finite alone


@pytest.mark.parametrize("overflow", [False, True])
@pytest.mark.parametrize("jit", [False, True])
def test_where_finite(overflow, jit):
    value = jnp.inf if overflow else 1.0
    new, old = (
        {"mean": jnp.full(2, value), "n": jnp.int32(2)},
        {"mean": jnp.ones(2), "n": jnp.int32(1)},
    )
    gradients = {
        "tree": {"w": jnp.array([0.0, value])},
        "unscaled": amp.UnscaledGrads({"w": jnp.ones(2)}, {0: jnp.float32(overflow)}),
    }
    run = jax.jit(amp.where_finite) if jit else amp.where_finite
    for grads in gradients.values():
        trees_equal(run(grads, new, old), old if overflow else new)


def test_where_finite_maps_under_vmap():
    grads = {"w": jnp.array([[1.0], [jnp.nan]])}
    new, old = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])
    assert jax.vmap(amp.where_finite)(grads, new, old).tolist() == [1.0, 4.0]


def test_where_finite_takes_trees_of_one_structure():
    text = "new and old must be trees of one structure, but only new has b/var; pass of both what"
    with pytest.raises(ValueError, match=text):
        amp.where_finite({}, {"a": 1.0, "b": {"var": 1.0}}, {"a": 1.0})


def test_on_a_mesh_everything_stays_where_it_lies(count_compilations):
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    net, x = nn.Sequential([nn.Dense(16), nn.LayerNorm(), nn.Dense(4)]), jnp.ones((8, 8))

    def lay(path, leaf):
        spec = (None, "model") if leaf.ndim == 2 else ()
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    variables = jinit.fast_init(net.init, out_shardings=lay)(jax.random.key(0), x)
    apply_fn, tx = initialize(net, adam())
    opt_state = jinit.fast_init(tx.init, out_shardings=lay)(variables["params"])
    step = amp.train_step(lambda variables, x: (apply_fn(variables, x) ** 2).mean(), tx)
    given = jax.tree.map(lambda leaf: leaf.sharding, (variables, opt_state))
    *state, _ = step(variables, opt_state, jax.device_put(x, rows))
    assert jax.tree.map(lambda leaf: leaf.sharding, tuple(state)) == given
    with count_compilations() as compiled:
        step(*state, jax.device_put(x, rows))
    assert compiled == []
