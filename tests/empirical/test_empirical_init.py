"""Activations of RMS 1, measured from outside: by Flax's capture or by hand."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jinit
from tests.empirical.models import (
    CNN,
    MLP,
    preactivations,
    random_loss,
    rms,
    tanh_net,
    tanh_params,
)

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")


def images(key):
    return jax.random.normal(key, (64, 8, 8, 1))


def vectors(key):
    return jax.random.normal(key, (64, 64))


def check_flax(module, draw, scale):
    params = module.init(jax.random.key(0), draw(jax.random.key(1)))
    params = jax.tree.map(lambda leaf: scale * leaf, params)
    tuned = jinit.empirical_init(params, module.apply, draw, random_loss)
    # one batch of 64 moves by up to a quarter at depth 64 under gelu: the mean is what is set
    held_out = jnp.concatenate([draw(key) for key in jax.random.split(jax.random.key(99), 16)])
    outputs = preactivations(module, tuned, held_out)
    assert len(outputs) == len(params["params"])
    assert all(0.9 < rms(output) < 1.1 for output in outputs), [rms(o) for o in outputs]


@pytest.mark.cases
@pytest.mark.parametrize("depth", [4, 16, 64])
@pytest.mark.parametrize("activation", [nn.relu, jnp.tanh, nn.gelu])
def test_mlp(depth, activation):
    check_flax(MLP(depth, activation=activation), vectors, 0.7)


@pytest.mark.thorough
def test_cnn_with_strides_transposed_and_depthwise_convolutions():
    check_flax(CNN(), images, 3.0)


@pytest.mark.cases
@pytest.mark.parametrize("depth", [2, 8, 32])
def test_plain_function_with_tanh_and_biases(depth):
    params = tanh_params(depth)
    tuned = jinit.empirical_init(params, tanh_net, vectors, random_loss)
    x = vectors(jax.random.key(99))
    for layer, original in zip(tuned, params, strict=True):
        y = x @ layer["w"] + layer["b"]
        assert 0.9 < rms(y) < 1.1
        ratio = layer["w"] / original["w"]
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4)
        np.testing.assert_allclose(layer["b"] / original["b"], ratio[0, 0], rtol=1e-4)
        x = jnp.tanh(y)


def test_the_scale_of_one_layer_is_the_closed_form():
    w = jax.random.normal(jax.random.key(0), (32, 32))
    x = jax.random.normal(jax.random.key(1), (16, 32))
    tuned = jinit.empirical_init({"w": w}, lambda p, x: x @ p["w"], x, jnp.sum)
    exact = np.float64(w) / np.sqrt(np.mean((np.float64(x) @ np.float64(w)) ** 2))
    np.testing.assert_allclose(tuned["w"], exact, rtol=2e-6)


def test_weights_used_through_powers_take_the_root_of_the_scale():
    def model(p, x):
        return x @ (jnp.square(p["a"]) / jnp.sqrt(jnp.sum(jnp.square(p["v"]))))

    params = {"a": 3 * jnp.eye(16), "v": jnp.ones(5)}
    x = jax.random.normal(jax.random.key(1), (64, 16))
    tuned = jinit.empirical_init(params, model, x, jnp.sum)
    assert rms(model(tuned, x)) == pytest.approx(1, rel=1e-5)


def stacked(depth, width=32):
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "w": 0.2 * jax.random.normal(keys[0], (depth, width, width)),
        "b": jax.random.normal(keys[1], (depth, width)),
    }


def scan_net(params, x):
    def body(x, layer):
        y = x @ layer["w"] + layer["b"]
        return jnp.tanh(y), y

    return jax.lax.scan(jax.checkpoint(body), x, params)


@pytest.mark.thorough
def test_scanned_layers_are_scaled_one_by_one_as_if_unrolled():
    params, x = stacked(6), jax.random.normal(jax.random.key(2), (64, 32))
    tuned = jinit.empirical_init(params, scan_net, x, lambda out: out[0].sum())
    np.testing.assert_allclose([rms(y) for y in scan_net(tuned, x)[1]], 1, rtol=1e-3)
    by_hand = x
    for i in range(6):
        y = by_hand @ params["w"][i] + params["b"][i]
        np.testing.assert_allclose(tuned["w"][i], params["w"][i] / rms(y), rtol=1e-3)
        by_hand = jnp.tanh(y / rms(y))


def test_a_shared_weight_gets_the_geometric_mean():
    w = 0.1 * jax.random.normal(jax.random.key(0), (32, 32))
    x = jax.random.normal(jax.random.key(1), (256, 32))

    def model(p, x):
        first = x @ p["w"]
        return first, jnp.tanh(first) @ p["w"]

    tuned = jinit.empirical_init({"w": w}, model, x, lambda out: out[1].sum())
    first, second = model(tuned, x)
    assert np.sqrt(rms(first) * rms(second)) == pytest.approx(1, rel=0.02)


def lstm_free_recurrence(params, x):
    def step(h, xt):
        h = jnp.tanh(xt @ params["i"] + h @ params["h"] + params["b"])
        return h, h

    return jax.lax.scan(step, jnp.zeros((x.shape[0], 16)), jnp.swapaxes(x, 0, 1))[1]


@pytest.mark.thorough
def test_a_recurrent_net_stays_finite_and_its_input_map_is_at_one():
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "i": jax.random.normal(keys[0], (8, 16)),
        "h": jax.random.normal(keys[1], (16, 16)),
        "b": jnp.zeros(16),
    }
    x = jax.random.normal(jax.random.key(3), (32, 10, 8))
    tuned = jinit.empirical_init(params, lstm_free_recurrence, x, jnp.sum)
    inputs = [rms(x[:, t] @ tuned["i"]) for t in range(10)]
    assert np.exp(np.mean(np.log(inputs))) == pytest.approx(1, rel=1e-3)
    hidden = lstm_free_recurrence(tuned, x)
    sizes = [rms(h @ tuned["h"]) for h in hidden[:-1]]
    assert np.exp(np.mean(np.log(sizes))) == pytest.approx(1, rel=0.02)


@pytest.mark.thorough
def test_an_embedding_and_what_follows_it():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            return nn.Dense(4)(nn.relu(nn.Dense(32)(nn.Embed(50, 16)(tokens))))

    tokens = jax.random.randint(jax.random.key(0), (32, 6), 0, 50)
    variables = Model().init(jax.random.key(1), tokens)
    tuned = jinit.empirical_init(variables, Model().apply, tokens, random_loss)
    vectors = tuned["params"]["Embed_0"]["embedding"][tokens]
    assert rms(vectors) == pytest.approx(1, rel=1e-3)
    assert all(rms(y) == pytest.approx(1, rel=1e-2) for y in preactivations(Model(), tuned, tokens))


def test_branches_are_scaled_where_they_are_taken():
    def model(p, x):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ p["a"], lambda x: x @ p["b"], x)

    params = {"a": jnp.eye(8) * 5, "b": jnp.eye(8) * 7}
    tuned = jinit.empirical_init(
        params, model, lambda key: jax.random.normal(key, (4, 8)), jnp.sum, samples=16
    )
    for name in params:
        assert 0.5 < float(tuned[name][0, 0]) < 2


# -- whatever framework wrote it ------------------------------------------------------------


@pytest.mark.thorough
def test_equinox():
    model = eqx.nn.MLP(16, 4, 32, 3, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)

    def apply(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    x = jax.random.normal(jax.random.key(1), (128, 16))
    tuned = jinit.empirical_init(params, apply, x, random_loss)
    assert isinstance(tuned, eqx.nn.MLP)
    assert rms(apply(tuned, x)) == pytest.approx(1, rel=1e-3)
    first = jax.vmap(tuned.layers[0])(x)
    assert rms(first) == pytest.approx(1, rel=1e-3)


def test_haiku():
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([32, 4])(x)))
    x = jax.random.normal(jax.random.key(1), (128, 16))
    params = net.init(jax.random.key(0), x)
    tuned = jinit.empirical_init(params, net.apply, x, random_loss)
    assert rms(net.apply(tuned, x)) == pytest.approx(1, rel=1e-3)


def test_nnx():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 4, rngs=rngs)

        def __call__(self, x):
            return self.b(nnx.relu(self.a(x)))

    graph, state = nnx.split(Model(nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(1), (128, 16))

    def apply(state, x):
        return nnx.merge(graph, state)(x)

    tuned = jinit.empirical_init(state, apply, x, random_loss)
    assert rms(apply(tuned, x)) == pytest.approx(1, rel=1e-3)
    assert rms(nnx.merge(graph, tuned).a(x)) == pytest.approx(1, rel=1e-3)


@pytest.mark.thorough
def test_batch_statistics_are_carried_and_not_scaled():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(16)(x)))
            return nn.Dense(4)(x)

    x = jax.random.normal(jax.random.key(1), (64, 8))
    variables = Model().init(jax.random.key(0), x)

    def apply(variables, x):
        return Model().apply(variables, x, mutable=["batch_stats"])[0]

    tuned = jinit.empirical_init(variables, apply, x, random_loss)
    jax.tree.map(np.testing.assert_array_equal, tuned["batch_stats"], variables["batch_stats"])
    y = preactivations_of_first(tuned["params"], x)
    assert rms(y) == pytest.approx(1, rel=1e-3)


def preactivations_of_first(params, x):
    return x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


# -- what may be passed ---------------------------------------------------------------------


@pytest.mark.cases
@pytest.mark.parametrize(
    "dummy_input",
    [
        jnp.ones((32, 64)),
        (jnp.ones((32, 64)),),
        lambda key: jax.random.normal(key, (32, 64)),
        lambda key: (jax.random.normal(key, (32, 64)),),
        lambda key, batch_size: jax.random.normal(key, (batch_size, 64)),
        lambda batch_size: jnp.ones((batch_size, 64)),
        lambda batchsz=3: jnp.ones((batchsz, 64)),
    ],
)
def test_every_form_of_dummy_input(dummy_input):
    params = tanh_params(2)
    tuned = jinit.empirical_init(params, tanh_net, dummy_input, jnp.mean, batch_size=16)
    assert jax.tree.structure(tuned) == jax.tree.structure(params)


def test_several_inputs():
    def model(p, x, y):
        return x @ p["w"] + y @ p["v"]

    params = {"w": jnp.eye(4), "v": 3 * jnp.eye(4)}
    inputs = (jnp.full((2, 4), 2.0), jnp.full((2, 4), 5.0))
    tuned = jinit.empirical_init(params, model, inputs, jnp.sum)
    np.testing.assert_allclose(tuned["w"], jnp.eye(4) / 2, rtol=1e-6)
    np.testing.assert_allclose(tuned["v"], jnp.eye(4) / 5, rtol=1e-6)


@pytest.mark.cases
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtypes_stay(dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), tanh_params(4))

    def draw(key):
        return vectors(key).astype(dtype)

    tuned = jinit.empirical_init(params, tanh_net, draw, lambda y: y.astype(jnp.float32).sum())
    assert {leaf.dtype for leaf in jax.tree.leaves(tuned)} == {jnp.dtype(dtype)}
    assert 0.9 < rms(tanh_net(tuned, draw(jax.random.key(9)))) < 1.1


def test_integer_leaves_and_keys_pass_through_untouched():
    params = {"w": jnp.eye(4), "n": jnp.arange(3), "key": jax.random.key(0)}
    tuned = jinit.empirical_init(
        params, lambda p, x: x @ p["w"] + p["n"].sum(), jnp.ones((2, 4)), jnp.sum
    )
    np.testing.assert_array_equal(tuned["n"], params["n"])
    assert tuned["key"] == params["key"]


# -- transformed code -----------------------------------------------------------------------


@pytest.mark.cases
def test_keys_of_both_kinds_are_reproducible(make_key):
    params = tanh_params(3)
    first = jinit.empirical_init(params, tanh_net, vectors, random_loss, key=make_key(3))
    again = jinit.empirical_init(params, tanh_net, vectors, random_loss, key=make_key(3))
    jax.tree.map(np.testing.assert_array_equal, first, again)


@pytest.mark.thorough
def test_it_works_under_jit_eval_shape_and_vmap():
    def tune(params):
        return jinit.empirical_init(params, tanh_net, vectors, random_loss)

    params = tanh_params(3)
    expected = tune(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), jax.jit(tune)(params), expected
    )
    assert jax.eval_shape(tune, params) == jax.eval_shape(lambda p: p, params)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    ensemble = jax.vmap(tune)(both)
    for i in range(2):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=2e-5), ensemble, expected
        )


@pytest.mark.thorough
def test_the_result_does_not_depend_on_the_parameters_size_to_first_order():
    def size(factor):
        params = jax.tree.map(lambda leaf: factor * leaf, tanh_params(3))
        tuned = jinit.empirical_init(params, tanh_net, vectors, random_loss)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tuned))

    assert abs(float(jax.grad(size)(1.0))) < 1e-2 * float(size(1.0))


@pytest.mark.cases
@pytest.mark.parametrize("devices", [2, 8])
def test_shardings_stay_and_values_do_not_depend_on_the_mesh(devices):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("d",))
    params = tanh_params(4)
    shardings = {"w": NamedSharding(mesh, P(None, "d")), "b": NamedSharding(mesh, P())}
    spread = [
        {name: jax.device_put(layer[name], shardings[name]) for name in layer} for layer in params
    ]
    tuned = jinit.empirical_init(spread, tanh_net, vectors, random_loss)
    for layer in tuned:
        for name, leaf in layer.items():
            assert leaf.sharding == shardings[name]
    single = jinit.empirical_init(params, tanh_net, vectors, random_loss)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), tuned, single)


def test_a_second_call_compiles_nothing(count_compilations):
    params = tanh_params(3)
    jinit.empirical_init(params, tanh_net, vectors, random_loss)
    with count_compilations() as compiled:
        jinit.empirical_init(tanh_params(3, seed=1), tanh_net, vectors, random_loss)
    assert compiled == []
