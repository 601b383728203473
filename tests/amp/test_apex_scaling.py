"""The tests that NVIDIA apex keeps for loss scaling (tests/L0/run_amp), ported as behaviour.

Ported here, by apex's names:

- test_multiple_models_optimizers_losses: test_2models2losses1optimizer,
  test_3models2losses1optimizer, test_2models2losses2optimizers, test_3models2losses2optimizers
- test_checkpointing: test_restoring, test_loss_scale_decrease, test_state_dict
- test_add_param_group: test_add_param_group
- test_multi_tensor_scale, test_multi_tensor_axpby, test_multi_tensor_l2norm,
  test_multi_tensor_unscale_l2norm: test_fuzz
- test_update_scale_hysteresis: test_fuzz

Left out, as they have no meaning here:

- test_fused_sgd repeats the first four with a fused optimizer: here the whole step is one compiled
  program in either case.
- test_multi_tensor_axpby's test_fuzz_nhwc and the l2norm's and scale's chunk sizes: memory formats
  and chunks are the compiler's.
- how gradients are set to zero (``how_to_zero``, ``zero_before_add``) and whether ``initialize``
  comes before or after loading (``amp_before_load``): there are no gradient buffers, and
  ``initialize`` holds no state.
- growth_factor 1.0 of the hysteresis fuzz: it is refused, as a scale that only falls.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import serialization

from jinit import amp
from tests.amp.reference import bits, dtypes

LEVELS = ("O0", "O1", "O2", "O3")
X = np.ones(2, np.float32)


def weights(unique):
    return {
        "weight0": jnp.float32(unique) + jnp.arange(2, dtype=jnp.float32),
        "weight1": 1 + jnp.float32(unique) + jnp.arange(2, dtype=jnp.float32),
    }


def model(params, x):
    return ((x * params["weight0"]) * params["weight1"]).sum()


def initialize(optimizers, level, **keywords):
    keywords |= {"half_dtype": "float16", "verbosity": 0}
    return amp.initialize(model, optimizers, level, **keywords)


def at_scales(state, scales):
    entries = [{"loss_scale": scale, "unskipped": 0} for scale in scales]
    return amp.load_state_dict(state, {f"loss_scaler{i}": e for i, e in enumerate(entries)})


def sgd_groups(rates, momentum):
    """Torch's SGD with parameter groups: every key of the parameters has a learning rate."""
    groups = {name: optax.sgd(rate, momentum) for name, rate in rates.items()}
    return optax.multi_transform(groups, lambda params: {name: name for name in params})


class TorchSGD:
    """SGD with momentum on the models above, in float64: w -= rate * buffer."""

    def __init__(self, rates, momentum):
        self.rates, self.momentum = rates, momentum
        self.params = {m: [m + 1 + np.arange(2.0), m + 2 + np.arange(2.0)] for m in rates}
        self.buffers = {m: [np.zeros(2), np.zeros(2)] for m in rates}

    def step(self, times):
        for m, rate in self.rates.items():
            first, second = self.params[m]
            grads = [times[m] * second, times[m] * first]
            self.buffers[m] = [
                self.momentum * b + g for b, g in zip(self.buffers[m], grads, strict=True)
            ]
            self.params[m] = [
                w - rate * b for w, b in zip(self.params[m], self.buffers[m], strict=True)
            ]


# The models of each loss, and of each optimizer their learning rates, and its momentum.
SUITES = {
    "2models2losses1optimizer": ([(0,), (1,)], [({0: 0.25, 1: 0.5}, 0.125)]),
    "3models2losses1optimizer": ([(0, 2), (1, 2)], [({0: 0.25, 1: 0.5, 2: 0.125}, 0.125)]),
    "2models2losses2optimizers": ([(0,), (1,)], [({0: 0.25}, 0.125), ({1: 0.5}, 0.25)]),
    "3models2losses2optimizers": (
        [(0, 1), (2, 1)],
        [({0: 0.25, 1: 1.0}, 0.5), ({2: 0.5}, 0.25)],
    ),
}
STEPS = 3


def fed_by(suite, loss):
    """The optimizers that a loss feeds."""
    losses, optimizers = SUITES[suite]
    return [o for o, (rates, _) in enumerate(optimizers) if set(rates) & set(losses[loss])]


@functools.cache
def compiled_run(suite, level, scales):
    """Returns the initialized function, and a run of three steps for what is added to gradients."""
    losses, optimizers = SUITES[suite]
    txs = [sgd_groups(*optimizer) for optimizer in optimizers]
    apply_fn, txs = initialize(txs, level, num_losses=len(scales))
    stored = [
        apply_fn.policy.cast_to_param({m: weights(m + 1) for m in rates}) for rates, _ in optimizers
    ]

    def take(loss, params, states, added):
        """Differentiates a loss by the parameters of all the optimizers that it feeds."""
        loss_id, fed = loss % len(scales), fed_by(suite, loss)

        def loss_fn(fed_params):
            merged = {m: tree for part in fed_params for m, tree in part.items()}
            value = sum(apply_fn(merged[m], X) for m in losses[loss])
            return amp.scale_loss(value, states[fed[0]], loss_id)

        grads = jax.grad(loss_fn)([params[o] for o in fed])
        grads = jax.tree.map(lambda g, a: g + a.astype(g.dtype), grads, [added[o] for o in fed])
        unscaled = amp.unscale(grads, states[fed[0]], loss_id)
        return {o: unscaled[i] for i, o in enumerate(fed)}

    def step(carry, added):
        params, states = carry
        taken = [take(i, params, states, extra) for i, extra in enumerate(added)]
        for o, tx in enumerate(txs):
            total = functools.reduce(lambda a, b: a + b, [t[o] for t in taken if o in t])
            updates, states[o] = tx.update(total, states[o], params[o])
            params[o] = optax.apply_updates(params[o], updates)
        return (params, states), None

    @jax.jit
    def run(added):
        states = [at_scales(tx.init(p), scales) for tx, p in zip(txs, stored, strict=True)]
        return jax.lax.scan(step, (stored, states), added)[0]

    return apply_fn, run


def nothing_added(suite):
    losses, optimizers = SUITES[suite]
    zeros = lambda: {"weight0": np.zeros((STEPS, 2)), "weight1": np.zeros((STEPS, 2))}  # noqa: E731
    return [[{m: zeros() for m in rates} for rates, _ in optimizers] for _ in losses]


def expected_params(suite, iteration, backward):
    losses, optimizers = SUITES[suite]
    references = [TorchSGD(*optimizer) for optimizer in optimizers]
    for step in range(STEPS):
        for o, reference in enumerate(references):
            if step != iteration or o not in fed_by(suite, backward):
                reference.step({m: sum(m in models for models in losses) for m in reference.rates})
    return {m: params for reference in references for m, params in reference.params.items()}


def cases():
    for suite, level, scales in itertools.product(SUITES, LEVELS, [(4.0,), (4.0, 16.0)]):
        yield suite, level, scales, -1, None, None, None
        if level in ("O1", "O2"):  # the scale of the others is constant, and skips nothing
            for iteration, backward in itertools.product((0, 1), (0, 1)):
                for which in SUITES[suite][0][backward]:
                    for place in ("weight0", "weight1"):
                        yield suite, level, scales, iteration, backward, which, place


def name_of(case):
    suite, level, scales, iteration, *rest = case
    return f"{suite}-{level}-{len(scales)}scalers-inf{iteration}-{'-'.join(map(str, rest))}"


@pytest.mark.cases
@pytest.mark.parametrize("case", list(cases()), ids=name_of)
def test_multiple_models_optimizers_losses(case):
    suite, level, scales, iteration, backward, which, place = case
    added = nothing_added(suite)
    if iteration >= 0:
        owner = next(o for o in fed_by(suite, backward) if which in SUITES[suite][1][o][0])
        added[backward][owner][which][place][iteration, 0] = np.inf
    apply_fn, run = compiled_run(suite, level, scales)
    params, states = run(added)
    merged = {m: tree for part in params for m, tree in part.items()}
    for m, (first, second) in expected_params(suite, iteration, backward).items():
        np.testing.assert_allclose(merged[m]["weight0"], first, rtol=1e-5)
        np.testing.assert_allclose(merged[m]["weight1"], second, rtol=1e-5)
    half = apply_fn.policy.computes_in_half
    for leaf in jax.tree.leaves(apply_fn.policy.cast_to_compute(merged)):
        assert leaf.dtype == ("float16" if half else "float32")
    for o, state in enumerate(states):
        overflowed = iteration >= 0 and o in fed_by(suite, backward)
        expected = list(scales)
        if overflowed:
            expected[backward % len(scales)] /= 2
        assert np.ravel(state.loss_scale).tolist() == expected


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x * self.param("param", nn.initializers.normal(1.0), (1,)).reshape(1, 1, 1, 1)
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        return nn.BatchNorm(use_running_average=False)(x)


def conv_training(level, tx, num_losses):
    """Returns the first variables and optimizer state, and a jitted step over chosen losses."""
    module = ConvNet()
    apply_fn, tx = amp.initialize(
        module, tx, level, half_dtype="float16", num_losses=num_losses, verbosity=0
    )
    variables = module.init(jax.random.key(2809), jnp.ones((1, 8, 8, 3)))
    variables = apply_fn.policy.cast_to_param(variables)

    @functools.partial(jax.jit, static_argnums=0)
    def step(loss_ids, variables, state, x, target):
        def loss_fn(params):
            out, updated = apply_fn({**variables, "params": params}, x, mutable=["batch_stats"])
            return ((out - target) ** 2).mean(), (out, updated)

        total = None
        for loss_id in loss_ids:
            call = amp.value_and_grad(loss_fn, state, loss_id, has_aux=True)
            (loss, (out, updated)), grads = call(variables["params"])
            total = grads if total is None else total + grads
        updates, state = tx.update(total, state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, **updated}, state, loss, out

    return variables, tx.init(variables["params"]), step


@pytest.mark.cases
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("num_losses", [1, 2])
def test_restoring(level, num_losses):
    variables, state, step = conv_training(level, optax.sgd(1e-3), num_losses)
    batches = np.random.default_rng(0).normal(size=(10, 4, 8, 8, 3)).astype(np.float32)
    target, loss_ids = np.zeros((4, 8, 8, 6), np.float32), tuple(range(num_losses))
    fresh = jax.tree.map(jnp.zeros_like, variables), jax.tree.map(jnp.zeros_like, state)
    restored = None
    for epoch, x in enumerate(batches):
        variables, state, _, out = step(loss_ids, variables, state, x, target)
        if restored is not None:
            *restored, _, again = step(loss_ids, *restored, x, target)
            np.testing.assert_allclose(again, out, rtol=1e-5)
            assert bits(restored) == bits((variables, state))
            assert amp.state_dict(state)["loss_scaler0"]["unskipped"] == epoch + 1
        if epoch == 4:
            checkpoint = {"model": variables, "optimizer": state}
            target_of = {"model": fresh[0], "optimizer": fresh[1]}
            saved = serialization.to_bytes(checkpoint), amp.state_dict(state)
            loaded = serialization.from_bytes(target_of, saved[0])
            restored = [loaded["model"], amp.load_state_dict(loaded["optimizer"], saved[1])]
            if level != "O3":
                assert dtypes(checkpoint["model"]) == {"float32"}


@pytest.mark.cases
@pytest.mark.parametrize("level", ["O1", "O2"])  # the others' scale is constant
def test_loss_scale_decrease(level):
    variables, state, step = conv_training(level, optax.sgd(1e-3), 3)
    first = np.asarray(state.loss_scale)
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32) * 2.0**20
    target = np.zeros((4, 8, 8, 6), np.float32)
    for loss_id, overflows in enumerate((0, 1, 2)):
        for _ in range(overflows):
            _, state, _, _ = step((loss_id,), variables, state, x, target)
    np.testing.assert_array_equal(state.loss_scale, first / [1.0, 2.0, 4.0])
    saved = amp.state_dict(state)
    for index, overflows in enumerate((0, 1, 2)):
        entry = {"loss_scale": first[index] / 2**overflows, "unskipped": 0}
        assert saved[f"loss_scaler{index}"] == entry


@pytest.mark.cases
@pytest.mark.parametrize("level", ["O0", "O1", "O2"])  # O3 stores half parameters, as in apex
def test_state_dict(level):
    variables, state, step = conv_training(level, optax.adam(1e-3), 1)
    assert not {"float16", "bfloat16"} & dtypes((variables, state))
    rng = np.random.default_rng(0)
    x, target = (rng.normal(size=(10, 4, 4, n)).astype(np.float32) for n in (3, 6))
    losses = []
    for _ in range(11):
        variables, state, loss, _ = step((0,), variables, state, x, target)
        losses.append(float(loss))
    assert amp.state_dict(state)["loss_scaler0"]["unskipped"] == 11
    assert (np.diff(losses) < 0).all()


@pytest.mark.cases
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("accumulations", [1, 2])
def test_add_param_group(level, accumulations):
    """A group joins after a step: its state is new, and the first group's goes on."""
    apply_fn, first = initialize(sgd_groups({"0": 0.25}, 0.125), level)
    _, both = initialize(sgd_groups({"0": 0.25, "1": 0.5}, 0.125), level)
    params = apply_fn.policy.cast_to_param({"0": weights(1)})

    def step(tx, params, state, times):
        loss_fn = lambda params: sum(apply_fn(tree, X) for tree in params.values())  # noqa: E731
        taken = [amp.value_and_grad(loss_fn, state)(params)[1] for _ in range(times)]
        updates, state = tx.update(functools.reduce(lambda a, b: a + b, taken), state, params)
        return optax.apply_updates(params, updates), state

    params, state = step(first, params, at_scales(first.init(params), [4.0]), 1)
    params["1"] = apply_fn.policy.cast_to_param(weights(2))
    grown = amp.load_state_dict(both.init(params), amp.state_dict(state))
    groups = grown.inner_state.inner_states | {"0": state.inner_state.inner_states["0"]}
    # The old group's momentum is masked where the new parameters are.
    old = optax.tree.get(state, "trace") | {"1": optax.MaskedNode()}
    groups["0"] = optax.tree.set(groups["0"], trace=old)
    state = grown._replace(inner_state=optax.transforms.PartitionState(groups))
    for _ in range(2):
        params, state = step(both, params, state, accumulations)

    reference = TorchSGD({0: 0.25}, 0.125)
    reference.step({0: 1})
    joined = TorchSGD({0: 0.25, 1: 0.5}, 0.125)
    joined.params[0], joined.buffers[0] = reference.params[0], reference.buffers[0]
    for _ in range(2):
        joined.step({0: accumulations, 1: accumulations})
    rtol = 1e-3 if level == "O3" else 1e-5  # half parameters are rounded once a step
    for m in (0, 1):
        np.testing.assert_allclose(params[str(m)]["weight0"], joined.params[m][0], rtol=rtol)
        np.testing.assert_allclose(params[str(m)]["weight1"], joined.params[m][1], rtol=rtol)
    assert amp.state_dict(state)["loss_scaler0"] == {"loss_scale": 4.0, "unskipped": 3}


SIZES = [(777, 555), (555, 2048 * 32 + 1), (2048 * 32 + 1, 555), (2048 * 32, 555), (33333, 555)]
TYPES = ["float32", "float16"]


def filled(sizes, repeat, value, dtype):
    return [np.full(size, value, dtype) for _ in range(repeat) for size in sizes]


def at_scale(scale):
    return at_scales(amp.loss_scaling(optax.sgd(0.1)).init({}), [scale])


unscale = jax.jit(amp.unscale)


@pytest.mark.cases
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("repeat", [1, 7])
@pytest.mark.parametrize("sizes", [*SIZES, (7777 * 77, 555 * 555)], ids=str)
def test_multi_tensor_scale_fuzz(sizes, repeat, dtype):
    state = at_scale(4.0)
    clean = unscale(filled(sizes, repeat, 4.0, dtype), state)
    assert all((leaf == 1.0).all() for leaf in clean.grads)
    assert float(clean.overflow[0]) == 0.0
    places = [
        (0, 0, np.nan),
        (2 * repeat - 1, sizes[1] - 1, np.inf),
        (2 * (repeat // 2), sizes[0] // 2, np.inf),
    ]
    for leaf, index, value in places:
        grads = filled(sizes, repeat, 4.0, dtype)
        grads[leaf][index] = value
        assert float(unscale(grads, state).overflow[0]) == 1.0


@pytest.mark.parametrize(("x_type", "y_type"), list(itertools.product(TYPES, TYPES)))
@pytest.mark.parametrize("sizes", SIZES[:3], ids=str)
def test_multi_tensor_axpby_fuzz(sizes, x_type, y_type):
    """2 x + 8 y, as gradients of scales 1/2 and 1/8 meet."""
    xs, ys = filled(sizes, 2, 4.0, x_type), filled(sizes, 2, 16.0, y_type)
    state = amp.loss_scaling(optax.sgd(0.1), num_losses=2).init({})
    state = at_scales(state, [0.5, 0.125])
    total = amp.unscale(xs, state, 0) + amp.unscale(ys, state, 1)
    assert dtypes(total) == {"float32"}
    assert all((leaf == 136.0).all() for leaf in total.grads)
    assert [float(total.overflow[i]) for i in (0, 1)] == [0.0, 0.0]
    xs[-1][-1] = np.inf
    total = amp.unscale(xs, state, 0) + amp.unscale(ys, state, 1)
    assert [float(total.overflow[i]) for i in (0, 1)] == [1.0, 0.0]


@pytest.mark.cases
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scale", [1.0, 2.0], ids=["l2norm", "unscale_l2norm"])
@pytest.mark.parametrize("repeat", [1, 7])
def test_multi_tensor_l2norm_fuzz(repeat, scale, dtype):
    for sizes in SIZES[:3]:
        norm = optax.tree.norm(unscale(filled(sizes, repeat, 4.0, dtype), at_scale(scale)).grads)
        expected = 4.0 / scale * np.sqrt(sum(sizes) * repeat)
        np.testing.assert_allclose(norm, expected, rtol=1e-5)


@pytest.mark.cases
@pytest.mark.parametrize("growth_factor", [2.0, 4.0])
@pytest.mark.parametrize("backoff_factor", [0.5, 0.25])
@pytest.mark.parametrize("growth_interval", [10, 100])
@pytest.mark.parametrize("hysteresis", [10, 100])
def test_update_scale_hysteresis_fuzz(growth_factor, backoff_factor, growth_interval, hysteresis):
    rng = np.random.default_rng([growth_interval, hysteresis])
    more, again = int(rng.integers(25)), int(rng.integers(300))
    lengths = [hysteresis - 1, growth_interval - 1, hysteresis + more, growth_interval + again]
    overflows = np.repeat([1.0, 0.0, 1.0, 0.0], lengths).astype(np.float32)
    tx = amp.loss_scaling(
        optax.sgd(0.1),
        growth_factor=growth_factor,
        backoff_factor=backoff_factor,
        growth_interval=growth_interval,
        hysteresis=hysteresis,
        max_loss_scale=2.0**126,
    )

    @jax.jit
    def run(first):
        def step(state, mark):
            _, state = tx.update(amp.UnscaledGrads({}, {0: mark}), state)
            return state, state.loss_scale

        return jax.lax.scan(step, tx.init({})._replace(loss_scale=first), overflows)[1]

    ends = np.cumsum(lengths) - 1
    for first in (1.0, 1024.0, 65536.0):
        scales = np.asarray(run(jnp.float32(first)))
        reduced = first * backoff_factor ** (1 + more)
        grown = reduced * growth_factor ** (1 + again // growth_interval)
        assert scales[ends].tolist() == [first, first, reduced, min(grown, 2.0**126)]
        assert (scales[: ends[1] + 1] == first).all()
