"""Loss scaling inside and around the rest of optax, under JAX's transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jinit import amp
from tests.amp.reference import bits


def train(tx, grads, params=None, jit=True):
    """Applies unscaled gradients in turn, each multiplied by the scale of its step."""
    params = jnp.ones(2) if params is None else params
    traces = []

    def step(params, state, grads):
        traces.append(1)
        scaled = jax.tree.map(lambda g: g * optax.tree.get(state, "loss_scale"), grads)
        updates, state = tx.update(scaled, state, params)
        return optax.apply_updates(params, updates), state

    state, run = tx.init(params), jax.jit(step) if jit else step
    for grad in grads:
        params, state = run(params, state, grad)
    if jit:
        assert len(traces) == run._cache_size() == 1
    return params, state


GRADS = [jnp.array([1.0, -2.0]) * (i + 1) for i in range(6)]
BAD = [grad * jnp.nan if i in (1, 4) else grad for i, grad in enumerate(GRADS)]
GOOD_OF_BAD = [grad for i, grad in enumerate(GRADS) if i not in (1, 4)]


def adam():
    return optax.adam(0.1)


INNER = {
    "adam": adam,
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(
        optax.linear_schedule(0.1, 0.0, 10)
    ),
    "multi_steps": lambda: optax.MultiSteps(adam(), 2).gradient_transformation(),
    "apply_if_finite": lambda: optax.apply_if_finite(adam(), 3),
    "schedule": lambda: optax.sgd(optax.cosine_decay_schedule(0.1, 10), momentum=0.9),
}


@pytest.mark.cases
@pytest.mark.parametrize(("name", "jit"), [("adam", False), *((name, True) for name in INNER)])
def test_a_run_with_overflows_is_the_run_without_those_steps(name, jit):
    tx = amp.loss_scaling(INNER[name](), init_scale=8.0)
    params, state = train(tx, BAD, jit=jit)
    expected, reference = train(tx, GOOD_OF_BAD, jit=jit)
    assert bits(params) == bits(expected)
    assert bits(state.inner_state) == bits(reference.inner_state)
    assert float(state.loss_scale) == 2.0


OUTER = {
    "chain": lambda tx: optax.chain(optax.identity(), tx),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(
        lambda factor: optax.chain(tx, optax.scale(factor))
    )(1.0),
    "multi_steps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    "named_chain": lambda tx: optax.named_chain(("amp", tx)),
}


@pytest.mark.cases
@pytest.mark.parametrize("name", OUTER)
def test_it_works_inside_other_transformations(name):
    def scaled():
        return amp.loss_scaling(adam(), init_scale=8.0)

    finite = GRADS if name == "multi_steps" else BAD
    params, state = train(OUTER[name](scaled()), finite)
    expected, reference = train(scaled(), finite)
    np.testing.assert_array_equal(params, expected)
    assert optax.tree.get(state, "loss_scale") == reference.loss_scale


def test_several_gradients_accumulate_at_one_scale_inside_multi_steps():
    tx = optax.MultiSteps(amp.loss_scaling(adam(), init_scale=8.0), 2).gradient_transformation()
    means = [(a + b) / 2 for a, b in zip(GRADS[::2], GRADS[1::2], strict=True)]
    params, _ = train(tx, GRADS)
    expected, _ = train(amp.loss_scaling(adam()), means)
    np.testing.assert_allclose(params, expected, rtol=1e-6)


def test_extra_arguments_reach_the_inner_transformation():
    def update(updates, state, params=None, *, factor):
        return jax.tree.map(lambda u: u * factor, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    tx = amp.loss_scaling(inner, init_scale=2.0)
    updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), factor=3.0)
    assert updates.tolist() == [1.5, 1.5]


def test_each_member_of_a_vmapped_ensemble_has_its_own_scale():
    tx = amp.loss_scaling(adam(), init_scale=8.0)
    params = jnp.arange(6.0).reshape(3, 2)
    states = jax.vmap(tx.init)(params)
    grads = jnp.ones((3, 2)).at[1, 0].set(jnp.inf)
    updates, after = jax.jit(jax.vmap(tx.update))(grads, states, params)
    assert after.loss_scale.tolist() == [8.0, 4.0, 8.0]
    assert after.last_finite.tolist() == [True, False, True]
    assert after.inner_state[0].count.tolist() == [1, 0, 1]
    for i in range(3):
        state = jax.tree.map(lambda leaf, i=i: leaf[i], states)
        single, _ = tx.update(grads[i], state, params[i])
        np.testing.assert_allclose(updates[i], single, rtol=1e-6)
    assert bits(optax.apply_updates(params, updates)[1]) == bits(params[1])


def test_scale_loss_under_vmap_and_eval_shape():
    tx = amp.loss_scaling(adam(), init_scale=8.0)
    state = tx.init(jnp.ones(2))
    losses = jax.vmap(lambda loss: amp.scale_loss(loss, state))(jnp.arange(3.0))
    assert losses.tolist() == [0.0, 8.0, 16.0]
    shapes = jax.eval_shape(tx.init, jnp.ones(2))
    assert jax.eval_shape(amp.scale_loss, jnp.float32(1), shapes).dtype == jnp.float32
    assert jax.tree.structure(shapes) == jax.tree.structure(state)


def replicas(array):
    return {np.asarray(shard.data).tobytes() for shard in array.addressable_shards}


@pytest.mark.cases
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("bad", [None, 0, 9, 15])
def test_eight_devices_agree_on_a_sharded_overflow(axis_type, bad):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
    rows, everywhere = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
    params = {"rows": jnp.ones(16), "bias": jnp.ones(3)}
    grads = {"rows": jnp.arange(16.0), "bias": jnp.ones(3)}
    if bad is not None:
        grads["rows"] = grads["rows"].at[bad].set(jnp.nan)
    tx = amp.loss_scaling(adam(), init_scale=8.0)
    updates, expected = jax.jit(tx.update)(grads, tx.init(params), params)
    with jax.set_mesh(mesh):
        placing = {"rows": rows, "bias": everywhere}
        params, grads = jax.device_put(params, placing), jax.device_put(grads, placing)
        state = jax.jit(tx.init)(params)
        sharded, after = jax.jit(tx.update)(grads, state, params)
    assert len(after.loss_scale.addressable_shards) == 8
    assert len(replicas(after.loss_scale)) == len(replicas(after.last_finite)) == 1
    assert float(after.loss_scale) == float(expected.loss_scale) == (8.0 if bad is None else 4.0)
    assert sharded["rows"].sharding.is_equivalent_to(rows, 1)
    for ours, theirs in zip(jax.tree.leaves(sharded), jax.tree.leaves(updates), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_replicas_agree_under_shard_map_after_the_reduction():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    tx = amp.loss_scaling(adam(), init_scale=8.0)
    params = jnp.ones(2)
    state = tx.init(params)

    def step(params, state, batch):
        loss_fn = lambda params: amp.scale_loss((params[None] * batch).sum(), state)  # noqa: E731
        grads = jax.lax.pmean(jax.grad(loss_fn)(jax.lax.pcast(params, "x", to="varying")), "x")
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), P("x")), out_specs=P()))
    batch = jnp.ones((8, 2))
    moved, after = run(params, state, batch)
    assert float(after.loss_scale) == 8.0
    np.testing.assert_allclose(moved, [0.9, 0.9], rtol=1e-5)
    kept, after = run(params, state, batch.at[5, 1].set(jnp.inf))
    assert bits(kept) == bits(params)
    assert len(replicas(after.loss_scale)) == 1
    assert float(after.loss_scale) == 4.0
