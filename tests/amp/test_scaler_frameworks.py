"""Loss scaling in Flax's train states, and with optax's parameter groups."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jinit import amp
from tests.amp.reference import bits

X = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3)
FACTORS = (1.0, np.inf, 1.0, 1.0, np.nan, 1.0)
GOOD = [factor for factor in FACTORS if np.isfinite(factor)]


def adam():
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))


def loss_of(out, factor=1.0):
    return factor * ((out - 1.0) ** 2).mean()


class TestTrainState:
    model = nn.Dense(2)

    def create(self, tx):
        variables = self.model.init(jax.random.key(0), X)
        state = TrainState.create(apply_fn=self.model.apply, params=variables["params"], tx=tx)
        return state.replace(step=jnp.int32(0))  # a Python number at first, which traces twice

    def loss_fn(self, params, factor):
        return loss_of(self.model.apply({"params": params}, X), factor)

    def by_scale_loss(self, state, factor):
        scaled = lambda p: amp.scale_loss(self.loss_fn(p, factor), state.opt_state)  # noqa: E731
        return state.apply_gradients(grads=jax.grad(scaled)(state.params))

    def by_value_and_grad(self, state, factor):
        _, grads = amp.value_and_grad(self.loss_fn, state.opt_state)(state.params, factor)
        return state.apply_gradients(grads=grads)

    def by_two_losses(self, state, factor):
        def half(loss_id, factor):
            take = amp.value_and_grad(
                lambda p: self.loss_fn(p, factor) / 2, state.opt_state, loss_id
            )
            return take(state.params)[1]

        return state.apply_gradients(grads=half(0, 1.0) + half(1, factor))

    @pytest.mark.cases
    @pytest.mark.parametrize(
        ("way", "num_losses"), [("scale_loss", 1), ("value_and_grad", 1), ("two_losses", 2)]
    )
    def test_it_trains_as_without_the_overflows(self, way, num_losses):
        step = jax.jit(getattr(self, f"by_{way}"))
        tx = amp.loss_scaling(adam(), init_scale=8.0, num_losses=num_losses)
        state, plain = self.create(tx), self.create(adam())
        for factor in FACTORS:
            state = step(state, jnp.float32(factor))
        for _ in GOOD:
            grads = jax.grad(self.loss_fn)(plain.params, 1.0)
            plain = plain.apply_gradients(grads=grads)
        for ours, expected in zip(*map(jax.tree.leaves, (state.params, plain.params)), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-5)
        scales = np.ravel(optax.tree.get(state.opt_state, "loss_scale"))
        assert scales.tolist() == [8.0] * (num_losses - 1) + [2.0]
        assert step._cache_size() == 1


class TestNnxOptimizer:
    def by_scale_loss(self, model, optimizer, factor):
        loss_fn = lambda m: amp.scale_loss(loss_of(m(X), factor), optimizer.opt_state)  # noqa: E731
        optimizer.update(model, nnx.grad(loss_fn)(model))

    def by_value_and_grad(self, model, optimizer, factor):
        loss_fn = lambda model: loss_of(model(X), factor)  # noqa: E731
        _, grads = amp.value_and_grad(loss_fn, optimizer.opt_state)(model)
        optimizer.update(model, grads.grads, overflow=grads.overflow)

    def by_two_losses(self, model, optimizer, factor):
        def half(loss_id, factor):
            loss_fn = lambda model: loss_of(model(X), factor) / 2  # noqa: E731
            return amp.value_and_grad(loss_fn, optimizer.opt_state, loss_id)(model)[1]

        grads = half(0, 1.0) + half(1, factor)
        optimizer.update(model, grads.grads, overflow=grads.overflow)

    @pytest.mark.cases
    @pytest.mark.parametrize(
        ("way", "num_losses"), [("scale_loss", 1), ("value_and_grad", 1), ("two_losses", 2)]
    )
    def test_it_trains_as_without_the_overflows(self, way, num_losses):
        step = nnx.jit(getattr(self, f"by_{way}"))
        model, plain = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        tx = amp.loss_scaling(adam(), init_scale=8.0, num_losses=num_losses)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        reference = nnx.Optimizer(plain, adam(), wrt=nnx.Param)
        for factor in FACTORS:
            step(model, optimizer, jnp.float32(factor))
        for _ in GOOD:
            reference.update(plain, nnx.grad(lambda model: loss_of(model(X)))(plain))
        np.testing.assert_allclose(model.kernel[...], plain.kernel[...], rtol=1e-5)
        np.testing.assert_allclose(model.bias[...], plain.bias[...], rtol=1e-5)
        saved = amp.state_dict(optimizer.opt_state)
        assert saved[f"loss_scaler{num_losses - 1}"] == {"loss_scale": 2.0, "unskipped": 1}
        loaded = amp.load_state_dict(optimizer.opt_state, saved)
        assert jax.tree.structure(loaded) == jax.tree.structure(optimizer.opt_state)

    def test_unscaled_gradients_without_their_marks_are_an_error(self):
        """The optimizer takes the wrapper apart; nothing may be unscaled twice in silence."""
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, amp.loss_scaling(adam()), wrt=nnx.Param)
        _, grads = amp.value_and_grad(lambda model: loss_of(model(X)), optimizer.opt_state)(model)
        with pytest.raises(ValueError, match="pytree structure error"):
            optimizer.update(model, grads)


PARAMS = {"one": jnp.ones(2), "two": jnp.ones(3)}
LABELS = {"one": "fast", "two": "slow"}


def squares(params, factor=1.0):
    return factor * sum((leaf**2).sum() for leaf in params.values())


OUTER = {
    "chain": lambda tx: optax.chain(optax.identity(), tx, optax.scale(1.0)),
    "named_chain": lambda tx: optax.named_chain(("amp", tx)),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(
        lambda factor: optax.chain(tx, optax.scale(factor))
    )(1.0),
}


@pytest.mark.cases
@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("name", OUTER)
def test_unscaled_gradients_pass_through_other_transformations(name, keyword):
    tx = OUTER[name](amp.loss_scaling(optax.sgd(0.25), init_scale=8.0, num_losses=2))
    params, state = PARAMS, tx.init(PARAMS)
    for factor in (1.0, np.inf):
        _, grads = amp.value_and_grad(squares, state, 1)(params, factor)
        handed, extra = (grads.grads, {"overflow": grads.overflow}) if keyword else (grads, {})
        updates, state = jax.jit(tx.update)(handed, state, params, **extra)
        params = optax.apply_updates(params, updates)
    assert params["two"].tolist() == [0.5] * 3
    assert optax.tree.get(state, "loss_scale").tolist() == [8.0, 4.0]


def test_unscaled_gradients_in_an_accumulator_outside_are_an_error():
    tx = optax.MultiSteps(amp.loss_scaling(optax.sgd(0.25)), 2).gradient_transformation()
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="loss_scaling must be outermost"):
        amp.value_and_grad(squares, state)


def test_parameter_groups_inside_share_the_scale():
    groups = optax.multi_transform({"fast": optax.sgd(0.25), "slow": optax.sgd(0.125)}, LABELS)
    tx = amp.loss_scaling(groups, init_scale=8.0)
    state = tx.init(PARAMS)
    assert float(optax.tree.get(state, "loss_scale")) == 8.0
    _, grads = amp.value_and_grad(squares, state)(PARAMS)
    updates, state = tx.update(grads, state, PARAMS)
    assert [leaf.tolist() for leaf in updates.values()] == [[-0.5] * 2, [-0.25] * 3]
    _, grads = amp.value_and_grad(squares, state)(PARAMS, jnp.inf)
    updates, state = tx.update(grads, state, PARAMS)
    assert float(state.loss_scale) == 4.0


def test_parameter_groups_outside_have_a_scale_each_and_are_refused():
    scaled = {name: amp.loss_scaling(optax.sgd(0.1)) for name in ("fast", "slow")}
    state = optax.multi_transform(scaled, LABELS).init(PARAMS)
    with pytest.raises(ValueError, match="opt_state holds 2 loss_scale where one is needed"):
        amp.scale_loss(1.0, state)
    one = {"fast": amp.loss_scaling(optax.sgd(0.1)), "slow": optax.set_to_zero()}
    state = optax.multi_transform(one, LABELS).init(PARAMS)
    assert float(optax.tree.get(state, "loss_scale")) == 2.0**16


def test_an_accumulator_inside_leaves_out_the_overflowed_part():
    multi_steps = optax.MultiSteps(optax.sgd(0.5), 2).gradient_transformation()
    tx = amp.loss_scaling(multi_steps, init_scale=8.0)
    params, state = PARAMS, tx.init(PARAMS)
    for factor in (1.0, np.inf, 3.0):
        _, grads = amp.value_and_grad(squares, state)(params, factor)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    # The mean of the two finite gradients, 2 and 6, at a rate of a half.
    assert params["one"].tolist() == [-1.0, -1.0]
    assert float(state.loss_scale) == 4.0


@pytest.mark.cases
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("bad", [None, 11])
def test_two_losses_on_eight_devices(axis_type, bad):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
    tx = amp.loss_scaling(optax.adam(0.1), init_scale=8.0, num_losses=2)

    def step(params, state, batch):
        _, first = amp.value_and_grad(lambda p: (p * batch).sum(), state, 0)(params)
        _, second = amp.value_and_grad(lambda p: (p**2).sum(), state, 1)(params)
        updates, state = tx.update(first + second, state, params)
        return optax.apply_updates(params, updates), state

    params, batch = jnp.ones(16), jnp.arange(16.0)
    batch = batch if bad is None else batch.at[bad].set(jnp.inf)
    expected = jax.jit(step)(params, tx.init(params), batch)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, P("x"))
        params, batch = jax.device_put(params, rows), jax.device_put(batch, rows)
        ours = jax.jit(step)(params, jax.jit(tx.init)(params), batch)
    assert ours[1].loss_scale.tolist() == [8.0 if bad is None else 4.0, 8.0]
    shards = {np.asarray(shard.data).tobytes() for shard in ours[1].loss_scale.addressable_shards}
    assert len(shards) == 1
    assert bits(ours) == bits(expected)


def test_initialize_refuses_an_optimizer_that_went_through_it():
    apply_fn = lambda params, x: x * params  # noqa: E731
    _, tx = amp.initialize(apply_fn, optax.sgd(0.1), num_losses=2, verbosity=0)
    _, twice = amp.initialize(apply_fn, optax.chain(optax.identity(), tx), verbosity=0)
    with pytest.raises(ValueError, match="the optimizer holds a loss_scale already: it was init"):
        twice.init(jnp.ones(2))


@pytest.mark.thorough
def test_what_is_given_to_initialize_reaches_the_scaler():
    keywords = {"loss_scale": "dynamic", "hysteresis": 2, "num_losses": 2, "verbosity": 0}
    apply_fn = lambda params, x: x * params  # noqa: E731
    _, tx = amp.initialize(apply_fn, optax.sgd(0.1), "O2", **keywords)
    state, scales = tx.init(jnp.ones(2)), []
    for _ in range(3):
        _, state = tx.update(amp.UnscaledGrads(jnp.ones(2), {1: jnp.float32(1)}), state)
        scales.append(state.loss_scale.tolist())
    assert scales == [[2.0**16, 2.0**16], [2.0**16, 2.0**15], [2.0**16, 2.0**14]]
    for enabled, skipped in ((True, True), (False, False)):
        _, tx = amp.initialize(
            apply_fn, optax.sgd(0.1), "O3", skip_nonfinite=True, enabled=enabled, verbosity=0
        )
        updates, _ = tx.update(jnp.array([1.0, jnp.nan]), tx.init(jnp.ones(2)))
        assert updates.any() != skipped
