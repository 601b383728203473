"""Scaled and unscaled gradients: several losses with scales of their own, Flax's train states,
optax's parameter groups and transformations around."""

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
from tests.amp.reference import bits, dtypes

PARAMS = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array([0.5])}


def square(params):
    return (params["w"] ** 2).sum() / 2


def linear(params):
    return 3.0 * params["w"].sum() + 5.0 * params["b"].sum()


def scaled(num_losses=2, **keywords):
    return amp.loss_scaling(optax.sgd(0.5, momentum=0.5), num_losses=num_losses, **keywords)


def with_scales(state, *scales):
    entries = [{"loss_scale": scale, "unskipped": 0} for scale in scales]
    return amp.load_state_dict(state, {f"loss_scaler{i}": e for i, e in enumerate(entries)})


@pytest.mark.thorough
def test_losses_at_scales_of_their_own_give_the_sum_of_their_gradients():
    tx = scaled()
    state = with_scales(tx.init(PARAMS), 4.0, 1024.0)
    loss0, grads0 = amp.value_and_grad(square, state, 0)(PARAMS)
    loss1, grads1 = amp.value_and_grad(linear, state, 1)(PARAMS)
    assert (float(loss0), float(loss1)) == (7.0, 8.5)
    total = grads0 + grads1
    expected = jax.grad(lambda params: square(params) + linear(params))(PARAMS)
    assert bits(total.grads) == bits(expected)
    updates, after = tx.update(total, state, PARAMS)
    plain = optax.sgd(0.5, momentum=0.5)
    assert bits(updates) == bits(plain.update(expected, plain.init(PARAMS))[0])
    assert after.loss_scale.tolist() == [4.0, 1024.0]
    assert after.growth_count.tolist() == [1, 1]


def infinite(params):
    return linear(params) * jnp.inf


@pytest.mark.cases
@pytest.mark.parametrize(
    ("losses", "scales", "counts", "finite"),
    [
        ((square, linear), [8.0, 8.0, 8.0], [1, 1, 0], [True, True, True]),
        ((infinite, linear), [4.0, 8.0, 8.0], [0, 1, 0], [False, True, True]),
        ((square, infinite), [8.0, 4.0, 8.0], [1, 0, 0], [True, False, True]),
        ((infinite, infinite), [4.0, 4.0, 8.0], [0, 0, 0], [False, False, True]),
    ],
)
def test_only_the_scales_of_the_losses_in_an_update_move(losses, scales, counts, finite):
    tx = scaled(3, init_scale=8.0)
    state = tx.init(PARAMS)
    assert state.loss_scale.shape == (3,)
    pairs = [amp.value_and_grad(loss, state, i)(PARAMS)[1] for i, loss in enumerate(losses)]
    updates, after = jax.jit(tx.update)(pairs[0] + pairs[1], state, PARAMS)
    assert after.loss_scale.tolist() == scales
    assert after.growth_count.tolist() == counts
    assert after.last_finite.tolist() == finite
    if all(finite):
        assert bits(after.inner_state) != bits(state.inner_state)
    else:
        assert bits(after.inner_state) == bits(state.inner_state)
        assert bits(optax.apply_updates(PARAMS, updates)) == bits(PARAMS)


def test_a_loss_that_feeds_two_optimizers_skips_both_and_moves_both_copies():
    first, second = scaled(init_scale=8.0), scaled(init_scale=8.0)
    params = {"one": jnp.ones(2), "two": jnp.ones(3)}
    states = first.init(params["one"]), second.init(params["two"])
    # The overflow is in the part of the second optimizer; the first must hear of it too.
    both = lambda params: params["one"].sum() + jnp.inf * params["two"].sum()  # noqa: E731
    own = lambda one: (one**2).sum()  # noqa: E731
    _, grads = amp.value_and_grad(both, states[0], 1)(params)
    _, more = amp.value_and_grad(own, states[0], 0)(params["one"])
    assert jnp.isfinite(grads["one"].grads).all()
    one, after0 = first.update(grads["one"] + more, states[0], params["one"])
    two, after1 = second.update(grads["two"], states[1], params["two"])
    assert not one.any()
    assert not two.any()
    assert after0.loss_scale.tolist() == [8.0, 4.0]
    assert after1.loss_scale.tolist() == [8.0, 4.0]
    assert after1.growth_count.tolist() == [0, 0]
    _, own_again = amp.value_and_grad(lambda one: jnp.inf * one.sum(), after0, 0)(params["one"])
    _, grads = amp.value_and_grad(lambda two: two.sum(), after0, 1)(params["two"])
    one, after0 = first.update(own_again, after0, params["one"])
    two, after1 = second.update(grads, after1, params["two"])
    assert not one.any()
    assert two.tolist() == [-0.5] * 3
    assert (after0.loss_scale.tolist(), after1.loss_scale.tolist()) == ([4.0, 4.0], [8.0, 4.0])


def test_losses_of_one_id_overflow_together():
    tx = scaled(1, init_scale=8.0)
    state = tx.init(PARAMS)
    (_, good), (_, bad) = (amp.value_and_grad(f, state)(PARAMS) for f in (square, infinite))
    for total in (good + bad, bad + good):
        updates, after = tx.update(total, state, PARAMS)
        assert (float(after.loss_scale), int(after.growth_count)) == (4.0, 0)
        assert not optax.tree.norm(updates)
    assert float(tx.update(good + good, state, PARAMS)[1].growth_count) == 1


def test_one_loss_goes_both_ways_alike_and_is_not_unscaled_twice():
    tx = scaled(1, init_scale=1024.0)
    state = tx.init(PARAMS)
    raw = jax.grad(lambda params: amp.scale_loss(square(params), state))(PARAMS)
    expected = jax.jit(tx.update)(raw, state, PARAMS)
    unscaled = amp.unscale(raw, state)
    _, taken = amp.value_and_grad(square, state)(PARAMS)
    assert bits(unscaled) == bits(taken)
    assert bits(jax.jit(tx.update)(taken, state, PARAMS)) == bits(expected)
    handed = jax.jit(tx.update)(taken.grads, state, PARAMS, overflow=taken.overflow)
    assert bits(handed) == bits(expected)


def test_value_and_grad_has_the_form_of_jax():
    state = scaled(1).init(PARAMS)

    def loss_fn(scale, params, *, shift):
        loss = (scale * params["w"]).sum() + shift
        return loss, {"shift": shift, "half": params["w"].astype(jnp.float16)}

    args, keywords = (jnp.float32(2.0), PARAMS), {"shift": 1.0}
    for argnums in (0, 1, (0, 1), (1,), -1):
        expected = jax.value_and_grad(loss_fn, argnums, has_aux=True)(*args, **keywords)
        ours = amp.value_and_grad(loss_fn, state, argnums=argnums, has_aux=True)
        value, grads = ours(*args, **keywords)
        assert bits((value, grads.grads)) == bits(expected)
        assert jax.tree.structure(grads.grads) == jax.tree.structure(expected[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_gradients_of_half_parameters_are_unscaled_in_float32(dtype):
    params = jnp.array([3.0, 1e-3], dtype)
    tx = scaled(1, init_scale=2.0**12)
    # 2**-30 vanishes in float16 but for the scale, and must not vanish again by unscaling.
    loss_fn = lambda params: (params.astype(jnp.float32) * 2.0**-30).sum()  # noqa: E731
    loss, grads = amp.value_and_grad(loss_fn, tx.init(params))(params)
    assert loss.dtype == jnp.float32
    assert dtypes(grads) == {"float32"}
    assert grads.grads.tolist() == [2.0**-30] * 2


@pytest.mark.cases
@pytest.mark.parametrize("bad", [None, 0, 2])
@pytest.mark.parametrize("combine", ["sum", "mean", "scan"])
def test_accumulated_gradients_keep_their_marks(combine, bad):
    tx = scaled(1, init_scale=8.0)
    state = tx.init(PARAMS)
    batch = jnp.arange(4.0) if bad is None else jnp.arange(4.0).at[bad].set(jnp.inf)
    take = lambda x: amp.value_and_grad(lambda params: x * square(params), state)(PARAMS)[1]  # noqa: E731
    if combine == "scan":
        start = jax.tree.map(jnp.zeros_like, take(batch[0]))
        total, _ = jax.lax.scan(lambda carry, x: (carry + take(x), None), start, batch)
    else:
        total = jax.tree.map(lambda leaf: getattr(leaf, combine)(0), jax.vmap(take)(batch))
    updates, after = tx.update(total, state, PARAMS)
    assert after.loss_scale.shape == ()
    assert float(after.loss_scale) == (8.0 if bad is None else 4.0)
    factor = 0.0 if bad is not None else 1.5 if combine == "mean" else 6.0
    np.testing.assert_allclose(updates["w"], -0.5 * factor * PARAMS["w"], rtol=1e-6)


def test_a_mark_that_became_nan_is_an_overflow():
    """As where gradients are clipped by a norm that is nan, before they are handed in."""
    tx = scaled(2, init_scale=8.0)
    state = tx.init(PARAMS)
    _, grads = amp.value_and_grad(infinite, state, 1)(PARAMS)
    updates, after = tx.update(jax.tree.map(lambda leaf: leaf * jnp.nan, grads), state, PARAMS)
    assert after.loss_scale.tolist() == [8.0, 4.0]
    assert not optax.tree.norm(updates)


@pytest.mark.parametrize("bad", [None, 5])
@pytest.mark.parametrize("num_losses", [1, 2])
def test_replicas_agree_when_they_average_unscaled_gradients(num_losses, bad):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    tx = scaled(num_losses, init_scale=8.0)
    state, loss_id = tx.init(PARAMS), num_losses - 1

    def step(params, state, batch):
        loss_fn = lambda params: batch.sum() * square(params)  # noqa: E731
        varying = jax.lax.pcast(params, "x", to="varying")
        _, grads = amp.value_and_grad(loss_fn, state, loss_id)(varying)
        updates, state = tx.update(jax.lax.pmean(grads, "x"), state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), P("x")), out_specs=P()))
    batch = jnp.ones(8) if bad is None else jnp.ones(8).at[bad].set(jnp.nan)
    params, after = run(PARAMS, state, batch)
    scales = {np.asarray(shard.data).tobytes() for shard in after.loss_scale.addressable_shards}
    assert len(scales) == 1
    assert np.ravel(after.loss_scale)[loss_id] == (8.0 if bad is None else 4.0)
    expected = PARAMS["w"] * (0.5 if bad is None else 1.0)
    np.testing.assert_array_equal(params["w"], expected)


def test_members_of_a_vmapped_ensemble_have_scales_of_their_own():
    tx = scaled(2, init_scale=8.0)
    params = jnp.arange(6.0).reshape(3, 2)

    def step(params, state, factor):
        _, first = amp.value_and_grad(lambda p: p.sum(), state, 0)(params)
        _, second = amp.value_and_grad(lambda p: factor * p.sum(), state, 1)(params)
        return tx.update(first + second, state, params)

    factors = jnp.array([1.0, jnp.inf, 1.0])
    updates, after = jax.jit(jax.vmap(step))(params, jax.vmap(tx.init)(params), factors)
    assert after.loss_scale.tolist() == [[8.0, 8.0], [8.0, 4.0], [8.0, 8.0]]
    assert updates[1].tolist() == [0.0, 0.0]
    assert updates[2].tolist() == [-1.0, -1.0]


def test_a_training_step_is_traced_once():
    tx, traces = scaled(2, init_scale=8.0), []

    @jax.jit
    def step(params, state, factor):
        traces.append(1)
        _, first = amp.value_and_grad(square, state, 0)(params)
        _, second = amp.value_and_grad(lambda p: factor * linear(p), state, 1)(params)
        updates, state = tx.update(first + second, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for factor in (1.0, np.inf, 1.0):
        params, state = step(params, state, jnp.float32(factor))
    state = amp.load_state_dict(state, amp.state_dict(state))
    step(params, state, jnp.float32(1.0))
    assert (len(traces), step._cache_size()) == (1, 1)


def test_every_gradient_is_checked_once():
    tx = scaled(1)
    params = {"w": jnp.ones((256, 256)), "b": jnp.ones((128, 512))}  # small ones are recomputed
    loss_fn = lambda params: sum((leaf**2).sum() for leaf in params.values())  # noqa: E731

    def by_scale_loss(params, state):
        grads = jax.grad(lambda params: amp.scale_loss(loss_fn(params), state))(params)
        return tx.update(grads, state, params)

    def by_value_and_grad(params, state):
        return tx.update(amp.value_and_grad(loss_fn, state)(params)[1], state, params)

    for step in (by_scale_loss, by_value_and_grad):
        program = jax.jit(step).lower(params, tx.init(params)).compile().as_text()
        assert program.count(" is-finite(") == len(params)


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

    def by_the_optimizer_itself(self, model, optimizer, factor):
        loss_fn = lambda model: loss_of(model(X), factor)  # noqa: E731
        _, grads = amp.value_and_grad(loss_fn, optimizer)(model)
        optimizer.update(model, grads)

    def by_two_losses(self, model, optimizer, factor):
        def half(loss_id, factor):
            loss_fn = lambda model: loss_of(model(X), factor) / 2  # noqa: E731
            return amp.value_and_grad(loss_fn, optimizer.opt_state, loss_id)(model)[1]

        grads = half(0, 1.0) + half(1, factor)
        optimizer.update(model, grads.grads, overflow=grads.overflow)

    @pytest.mark.cases
    @pytest.mark.parametrize(
        ("way", "num_losses"),
        [("scale_loss", 1), ("value_and_grad", 1), ("the_optimizer_itself", 1), ("two_losses", 2)],
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

    def test_a_module_may_have_a_part_called_grads(self):
        class Net(nnx.Module):
            def __init__(self):
                self.grads = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

            def __call__(self, x):
                return self.grads(x)

        for way in (self.by_scale_loss, self.by_the_optimizer_itself):
            model, plain = Net(), Net()
            optimizer = nnx.Optimizer(model, amp.loss_scaling(adam()), wrt=nnx.Param)
            reference = nnx.Optimizer(plain, adam(), wrt=nnx.Param)
            way(model, optimizer, 1.0)
            reference.update(plain, nnx.grad(lambda model: loss_of(model(X)))(plain))
            np.testing.assert_allclose(model.grads.kernel[...], plain.grads.kernel[...], rtol=1e-5)

    def test_of_several_losses_the_marks_are_asked_for(self):
        """The optimizer drops them; nothing may be unscaled twice, or by another's mark."""
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, amp.loss_scaling(adam(), num_losses=2), wrt=nnx.Param)
        _, grads = amp.value_and_grad(lambda model: loss_of(model(X)), optimizer)(model)
        with pytest.raises(ValueError, match=r"update\(model, grads\.grads, overflow=grads\.overf"):
            optimizer.update(model, grads)


GROUPS = {"one": jnp.ones(2), "two": jnp.ones(3)}
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
    params, state = GROUPS, tx.init(GROUPS)
    for factor in (1.0, np.inf):
        _, grads = amp.value_and_grad(squares, state, 1)(params, factor)
        handed, extra = (grads.grads, {"overflow": grads.overflow}) if keyword else (grads, {})
        updates, state = jax.jit(tx.update)(handed, state, params, **extra)
        params = optax.apply_updates(params, updates)
    assert params["two"].tolist() == [0.5] * 3
    assert optax.tree.get(state, "loss_scale").tolist() == [8.0, 4.0]


def test_parameter_groups_inside_share_the_scale():
    groups = optax.multi_transform({"fast": optax.sgd(0.25), "slow": optax.sgd(0.125)}, LABELS)
    tx = amp.loss_scaling(groups, init_scale=8.0)
    state = tx.init(GROUPS)
    assert float(optax.tree.get(state, "loss_scale")) == 8.0
    _, grads = amp.value_and_grad(squares, state)(GROUPS)
    updates, state = tx.update(grads, state, GROUPS)
    assert [leaf.tolist() for leaf in updates.values()] == [[-0.5] * 2, [-0.25] * 3]
    _, grads = amp.value_and_grad(squares, state)(GROUPS, jnp.inf)
    updates, state = tx.update(grads, state, GROUPS)
    assert float(state.loss_scale) == 4.0


def test_parameter_groups_outside_have_a_scale_each_and_are_refused():
    scaled = {name: amp.loss_scaling(optax.sgd(0.1)) for name in ("fast", "slow")}
    state = optax.multi_transform(scaled, LABELS).init(GROUPS)
    with pytest.raises(ValueError, match="opt_state holds 2 loss_scale where one is needed"):
        amp.scale_loss(1.0, state)
    one = {"fast": amp.loss_scaling(optax.sgd(0.1)), "slow": optax.set_to_zero()}
    state = optax.multi_transform(one, LABELS).init(GROUPS)
    assert float(optax.tree.get(state, "loss_scale")) == 2.0**16


def test_an_accumulator_inside_leaves_out_the_overflowed_part():
    multi_steps = optax.MultiSteps(optax.sgd(0.5), 2).gradient_transformation()
    tx = amp.loss_scaling(multi_steps, init_scale=8.0)
    params, state = GROUPS, tx.init(GROUPS)
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


STATE = scaled(2).init(PARAMS)
GRADS = amp.UnscaledGrads(PARAMS, {2: jnp.float32(0)})


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: amp.scale_loss(jnp.ones(3), STATE),
            ValueError,
            "a loss must be a float32 scalar, not float32 of shape (3,): average it, and cast the "
            "model's outputs to float32 before the loss is computed",
        ),
        *(
            (
                lambda loss=loss: amp.scale_loss(loss, STATE),
                ValueError,
                f"a loss must be a float32 scalar, not {dtype} of shape (): ",
            )
            for dtype, loss in [
                ("float16", jnp.float16(1)),
                ("bfloat16", jnp.bfloat16(1)),
                ("int32", 3),
            ]
        ),
        (
            lambda: amp.scale_loss(1.0, scaled(1).init(PARAMS), 1),
            ValueError,
            "loss_id must be 0, the only loss, not 1: the optimizer has num_losses=1",
        ),
        (
            lambda: amp.scale_loss(1.0, STATE, 2),
            ValueError,
            "loss_id must be an integer from 0 to 1, not 2: the optimizer has num_losses=2",
        ),
        (
            lambda: amp.scale_loss(1.0, STATE, -1),
            ValueError,
            "loss_id must be an integer from 0 to",
        ),
        (
            lambda: amp.scale_loss(1.0, STATE, 0.0),
            ValueError,
            "loss_id must be an integer from 0 t",
        ),
        (lambda: amp.scale_loss(1.0, STATE, True), ValueError, "loss_id must be an integer from 0"),
        (
            lambda: amp.unscale(PARAMS, STATE, 2),
            ValueError,
            "loss_id must be an integer from 0 to 1",
        ),
        (
            lambda: amp.value_and_grad(square, STATE, 3)(PARAMS),
            ValueError,
            "loss_id must be an integer from 0 to 1, not 3",
        ),
        (
            lambda: amp.value_and_grad(lambda params: params["w"], STATE)(PARAMS),
            ValueError,
            "a loss must be a float32 scalar, not float32 of shape (3,): average it, and cast",
        ),
        (
            lambda: amp.value_and_grad(lambda p: square(p).astype(jnp.float16), STATE)(PARAMS),
            ValueError,
            "a loss must be a float32 scalar, not float16 of shape (): average it, and cast",
        ),
        (
            lambda: amp.value_and_grad(lambda p: square(p).astype(int), STATE)(PARAMS),
            ValueError,
            "a loss must be a float32 scalar, not int32 of shape ()",
        ),
        (
            lambda: scaled(2).update(PARAMS, STATE, PARAMS),
            ValueError,
            "an optimizer with num_losses=2 takes gradients that are unscaled and name their loss: "
            "take them from amp.value_and_grad or amp.unscale",
        ),
        (
            lambda: scaled(2).update(GRADS, STATE, PARAMS),
            ValueError,
            "loss_id must be an integer from 0 to 1, not 2: the optimizer has num_losses=2",
        ),
        (
            lambda: amp.unscale(GRADS, STATE),
            TypeError,
            "the gradients are unscaled already: hand them to the optimizer",
        ),
        (lambda: GRADS + PARAMS, TypeError, "unsupported operand type(s) for +: 'UnscaledGrads'"),
    ],
)
def test_errors(call, error, text):
    before = bits(STATE)
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(text)
    assert bits(STATE) == before
