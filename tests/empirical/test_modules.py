"""Modules of NNX, Equinox, linen and Haiku, calibrated as they are, against linen's variables."""

import functools
import json
import re

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jinit

X = jax.random.normal(jax.random.key(1), (64, 6))
SIZES = (6, 16, 4)
CALLS = [jinit.empirical_init, jinit.calibrate]


def loss(y, key):
    return jnp.sum(y * jax.random.normal(key, y.shape))


def weights(number):
    keys = jax.random.split(jax.random.key(number))
    shape = SIZES[number : number + 2]
    return 3.0 * jax.random.normal(keys[0], shape), 0.1 * jax.random.normal(keys[1], shape[1:])


# -- one network in every framework, of the same numbers ----------------------------------------


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(SIZES[2], name="second")(nn.relu(nn.Dense(SIZES[1], name="first")(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(*SIZES[:2], rngs=rngs)
        self.second = nnx.Linear(*SIZES[1:], rngs=rngs)
        for number, layer in enumerate((self.first, self.second)):
            layer.kernel[...], layer.bias[...] = weights(number)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __init__(self):
        made = []
        for number in range(2):
            layer = eqx.nn.Linear(*SIZES[number : number + 2], key=jax.random.key(0))
            kernel, bias = weights(number)
            made.append(eqx.tree_at(lambda m: (m.weight, m.bias), layer, (kernel.T, bias)))
        self.first, self.second = made

    def __call__(self, x):
        return self.second(jax.nn.relu(self.first(x)))


def linen_variables():
    named = zip(("first", "second"), map(weights, range(2)), strict=True)
    return {"params": {name: {"kernel": w, "bias": b} for name, (w, b) in named}}


def haiku_layers(x):
    x = hk.Linear(SIZES[1], name="first")(x)
    return hk.Linear(SIZES[2], name="second")(jax.nn.relu(x))


haiku = hk.transform(haiku_layers)
haiku_with_state = hk.transform_with_state(haiku_layers)


def haiku_params():
    return {name: {"w": w, "b": b} for name, (w, b) in zip(
        ("first", "second"), map(weights, range(2)), strict=True)}  # fmt: skip


def batched(m, x):
    return jax.vmap(m)(x)


MODELS = {
    "NNX": lambda: (Nnx(nnx.Rngs(0)),),
    "NNX with a function": lambda: (Nnx(nnx.Rngs(0)), lambda m, x: m(x)),
    "Equinox": lambda: (Equinox(), batched),
    "bound linen": lambda: (Linen().bind(linen_variables()),),
    "bound linen with a function": lambda: (
        Linen().bind(linen_variables()), lambda m, x: m(x),
    ),
    "variables and a linen module": lambda: (linen_variables(), Linen()),
    "Haiku": lambda: (haiku_params(), haiku),
    "Haiku without keys": lambda: (haiku_params(), hk.without_apply_rng(haiku)),
    "Haiku with state": lambda: ((haiku_params(), {}), haiku_with_state),
}  # fmt: skip


@functools.cache
def linen_result(mode="fold"):
    return jinit.calibrate(linen_variables(), Linen().apply, X, loss, mode=mode, samples=2)


def numbers(tree, transposed=False):
    """The four arrays of a tree of parameters, in one order."""
    if isinstance(tree, nn.Module):
        tree = tree.variables
    if isinstance(tree, tuple):
        tree = tree[0]
    found = []
    for name in ("first", "second"):
        layer = tree["params"][name] if "params" in _keys(tree) else _item(tree, name)
        for names in (("kernel", "weight", "w"), ("bias", "b")):
            (value,) = [_item(layer, n) for n in names if _has(layer, n)]
            value = value[...] if isinstance(value, nnx.Variable) else value
            found.append(np.asarray(value).T if transposed else np.asarray(value))
    return found


def _keys(tree):
    return tree if isinstance(tree, dict) else ()


def _has(tree, name):
    return name in tree if hasattr(tree, "keys") else hasattr(tree, name)


def _item(tree, name):
    return tree[name] if hasattr(tree, "keys") else getattr(tree, name)


@pytest.mark.cases
@pytest.mark.parametrize("mode", ["fold", "explicit"])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_linens_result_on_the_same_numbers(name, mode):
    given = MODELS[name]()
    result = jinit.calibrate(*given, X, loss, mode=mode, samples=2)
    assert type(result.params) is type(given[0])
    transposed = name == "Equinox"
    expected = linen_result(mode)
    for ours, theirs in zip(
        numbers(result.params, transposed), numbers(expected.params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5)
    for ours, theirs in zip(
        numbers(result.multipliers), numbers(expected.multipliers), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5)
    for ours, theirs in zip(result.report.rows, expected.report.rows, strict=True):
        assert ours.update_after == pytest.approx(theirs.update_after, rel=1e-4)


@pytest.mark.cases
@pytest.mark.parametrize("name", MODELS)
def test_empirical_init_returns_what_it_was_given(name):
    given = MODELS[name]()
    tuned = jinit.empirical_init(*given, X, loss, samples=2)
    assert type(tuned) is type(given[0])
    expected = jinit.empirical_init(linen_variables(), Linen().apply, X, loss, samples=2)
    transposed = name == "Equinox"
    for ours, theirs in zip(numbers(tuned, transposed), numbers(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5)


def applied(name, result):
    """The output of what is to be trained, as each framework calls it."""
    if name in ("Haiku", "Haiku with state"):
        given = result.params if isinstance(result.params, tuple) else (result.params,)
        output = result.apply_fn(*given, None, X)
        return output[0] if isinstance(result.params, tuple) else output
    return result.apply_fn(result.params, X)


@pytest.mark.cases
@pytest.mark.parametrize("mode", ["fold", "explicit"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_trained_is_called_as_the_framework_calls_it(name, mode):
    result = jinit.calibrate(*MODELS[name](), X, loss, mode=mode, samples=2)
    expected = linen_result(mode)
    np.testing.assert_allclose(
        applied(name, result), expected.apply_fn(expected.params, X), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("call", CALLS)
def test_one_layer_is_divided_by_the_rms_of_its_output(call):
    layer = nnx.Linear(6, 32, use_bias=False, rngs=nnx.Rngs(0))
    kernel = np.asarray(layer.kernel[...], np.float64)
    tuned = call(layer, X, loss)
    tuned = getattr(tuned, "params", tuned)
    rms = np.sqrt(np.mean((np.asarray(X, np.float64) @ kernel) ** 2))
    np.testing.assert_allclose(tuned.kernel[...], kernel / rms, rtol=1e-6)


# -- how it is called ---------------------------------------------------------------------------


FORMS = {
    "by position": lambda call, m, f: call(m, f, X, loss, samples=1),
    "inputs by name": lambda call, m, f: call(m, f, dummy_input=X, dummy_loss=loss, samples=1),
    "alone": lambda call, m, f: call(m, X, loss, samples=1),
    "alone, the loss by name": lambda call, m, f: call(m, X, dummy_loss=loss, samples=1),
    "alone, by name": lambda call, m, f: call(m, dummy_input=X, dummy_loss=loss, samples=1),
    "all by name": lambda call, m, f: call(
        params=m, apply_fn=f, dummy_input=X, dummy_loss=loss, samples=1
    ),
    "None for itself": lambda call, m, f: call(m, None, X, loss, samples=1),
}


@pytest.mark.cases
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_call_means_the_same(form):
    expected = jinit.empirical_init(Nnx(nnx.Rngs(0)), X, loss, samples=1)
    tuned = FORMS[form](jinit.empirical_init, Nnx(nnx.Rngs(0)), lambda m, x: m(x))
    for ours, theirs in zip(numbers(tuned), numbers(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_inputs_that_are_drawn():
    tuned = jinit.empirical_init(
        Nnx(nnx.Rngs(0)), lambda key: jax.random.normal(key, (64, 6)), loss
    )
    assert float(jnp.mean(tuned(X) ** 2)) == pytest.approx(1, rel=0.2)


def test_several_modules_in_one_tree():
    given = {"body": Nnx(nnx.Rngs(0)).first, "heads": [Nnx(nnx.Rngs(0)).second]}
    result = jinit.calibrate(given, lambda m, x: m["heads"][0](nnx.relu(m["body"](x))), X, loss)
    assert type(result.params) is dict
    assert isinstance(result.params["heads"][0], nnx.Linear)
    assert [row.path for row in result.report.rows] == ["body/kernel", "heads/0/kernel"]


# -- state --------------------------------------------------------------------------------------


class Stateful(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List(
            [
                nnx.Linear(*SIZES[:2], rngs=rngs),
                nnx.BatchNorm(16, rngs=rngs),
                nnx.Linear(16, 4, rngs=rngs),
            ]
        )
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.seen = nnx.Variable(jnp.zeros(3))
        self.plain = nnx.data(jnp.ones(2))

    def __call__(self, x):
        first, norm, last = self.layers
        self.seen[...] += 1
        return last(self.dropout(nnx.relu(norm(first(x)))))


def leaves_of(model):
    state = jax.tree.leaves(nnx.split(model)[1])
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in state
    ]


def carried(model):
    return jax.tree.leaves(nnx.filter_state(nnx.state(model), nnx.Not(nnx.Param)))


@pytest.mark.cases
@pytest.mark.parametrize("mode", ["fold", "explicit"])
def test_the_given_module_is_not_touched_and_the_new_one_has_its_state(mode):
    model = Stateful(nnx.Rngs(0))
    model(X)
    before, variables = leaves_of(model), nnx.state(model)
    result = jinit.calibrate(model, X, loss, mode=mode, samples=2)
    for now, then in zip(leaves_of(model), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert result.params is not model
    for ours, theirs in zip(carried(result.params), carried(model), strict=True):
        assert bool(jnp.all(ours == theirs))
    result.params(X)  # writes to its own variables alone
    for now, then in zip(leaves_of(model), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert variables["seen"][...].tolist() == [1, 1, 1]


def test_state_is_no_parameter_and_paths_are_the_users():
    result = jinit.calibrate(Stateful(nnx.Rngs(0)), X, loss)
    assert [row.path for row in result.report.rows] == [
        "layers/0/kernel", "layers/1/scale", "layers/1/bias", "layers/2/kernel",
    ]  # fmt: skip
    assert result.report.not_tuned == {
        "layers/1/scale": "a gain",
        "layers/1/bias": "a bias on its own",
    }
    assert result.report.unused == ()
    assert "value" not in str(result.report)
    assert jax.tree.structure(result.multipliers) == jax.tree.structure(
        nnx.state(result.params, nnx.Param)
    )


@pytest.mark.cases
@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_parameter_stays_what_it_is(call):
    model = Stateful(nnx.Rngs(0))
    smallest = jnp.full(16, 1e-40)  # a product with 1 would round it to 0
    model.layers[1].mean[...] = smallest
    model.table = nnx.data(np.arange(3.0))
    found = call(model, X, loss, samples=1)
    found = found if call is jinit.empirical_init else found.params
    kept = np.asarray(found.layers[1].mean[...]).view(np.uint32)
    np.testing.assert_array_equal(kept, np.asarray(smallest).view(np.uint32))
    assert isinstance(found.table, np.ndarray)
    assert found.table.dtype == np.float64


def _dropped(model, x, key):
    return jax.vmap(model)(x, key=jax.random.split(key, len(x)))


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["fold", "explicit"])
def test_a_pass_may_draw_with_keys_of_the_pass_before(mode):
    layers = [eqx.nn.Linear(6, 4, key=jax.random.key(0)), eqx.nn.Dropout(0.5)]
    model, used = eqx.nn.Sequential(layers), jax.random.key(1)

    def drop(model, x, *, rngs):
        return _dropped(model, x, rngs["dropout"]) + 0 * jax.random.normal(used, (1, 4))

    with jax.debug_key_reuse(True):
        jinit.calibrate(Stateful(nnx.Rngs(0)), X, loss, samples=1, mode=mode)
        jinit.calibrate(model, _dropped, (X, jax.random.key(2)), loss, samples=1, mode=mode)
        jinit.calibrate(model, drop, X, loss, samples=1, rngs="dropout", mode=mode)


class StatefulLinen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16, name="first")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False, name="norm")(x))
        return nn.Dense(4, name="last")(x)


@pytest.mark.thorough
def test_batch_statistics_are_linens():
    model = Stateful(nnx.Rngs(0))
    model.dropout.deterministic = True
    first, norm, last = model.layers
    result = jinit.calibrate(model, lambda m, x: m(x), X, loss, samples=2)
    variables = StatefulLinen().init(jax.random.key(0), X)
    for name, layer in (("first", first), ("last", last)):
        variables["params"][name] = {"kernel": layer.kernel[...], "bias": layer.bias[...]}
    apply_fn = functools.partial(StatefulLinen().apply, mutable=["batch_stats"])
    expected = jinit.calibrate(variables, apply_fn, X, loss, samples=2, has_aux=True)
    for ours, theirs in zip(result.report.rows, expected.report.rows, strict=True):
        assert ours.activation_after == pytest.approx(theirs.activation_after, rel=1e-4)
        assert ours.update_after == pytest.approx(theirs.update_after, rel=1e-4)
    # and where linen's module is given itself, what it does to its statistics is dropped
    alone = jinit.calibrate(variables, StatefulLinen(), X, loss, samples=2)
    jax.tree.map(np.testing.assert_array_equal, alone.params, expected.params)
    assert norm.mean[...].tolist() == [0.0] * 16


class DroppedLinen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16, name="first")(x))
        return nn.Dense(4, name="second")(nn.Dropout(0.5, deterministic=False)(x))


def test_rngs_of_a_linen_module():
    module, key = DroppedLinen(), jax.random.key(0)
    variables = module.init({"params": key, "dropout": key}, X)
    expected = jinit.empirical_init(variables, module.apply, X, loss, rngs="dropout")
    found = jinit.empirical_init(variables, module, X, loss, rngs="dropout")
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # a bound module says by itself what it draws with
    bound = jinit.empirical_init(module.bind(variables, rngs={"dropout": key}), X, loss)
    jax.tree.map(np.testing.assert_array_equal, bound.variables, expected)


@pytest.mark.thorough
def test_what_a_bound_module_writes_in_explicit_mode_is_not_lost():
    module = StatefulLinen()
    variables = module.init(jax.random.key(0), X)
    bound = module.bind(variables, mutable=["batch_stats"])
    result = jinit.calibrate(bound, X, loss, samples=1, mode="explicit")
    message = (
        "the call of the bound StatefulLinen writes to batch_stats, which would be lost: calibrate "
        "variables and module, as in jinit.calibrate(variables, module, x, loss, ...), and take "
        "from result.apply_fn(variables, x, mutable=['batch_stats']) what it wrote"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        result.apply_fn(result.params, X)
    result = jinit.calibrate(variables, module, X, loss, samples=1, mode="explicit")
    _, new = result.apply_fn(result.params, X, mutable=["batch_stats"])
    before, after = variables["batch_stats"]["norm"], new["batch_stats"]["norm"]
    assert not np.array_equal(before["mean"], after["mean"])


def test_every_key_draws_another_mask():
    """A mask that all keys shared would make of the RMS that of one draw."""

    class Masked(nnx.Module):
        def __init__(self):
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
            self.linear = nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.linear(self.dropout(x))

    model, x = Masked(), jnp.ones((4, 1))
    tuned = [
        jinit.empirical_init(model, x, loss, samples=1, key=jax.random.key(n)) for n in range(8)
    ]
    assert len({round(abs(float(each.linear.kernel[0, 0])), 4) for each in tuned}) > 1


def test_a_shared_module_is_one_leaf_with_one_scale():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(6, 6, rngs=rngs)
            self.again = self.first

        def __call__(self, x):
            return self.again(nnx.relu(self.first(x)))

    result = jinit.calibrate(Tied(nnx.Rngs(0)), X, loss)
    assert result.params.first is result.params.again
    assert [row.path for row in result.report.rows] == ["again/kernel", "again/kernel"] or [
        row.path for row in result.report.rows
    ] == ["first/kernel", "first/kernel"]
    assert len(jax.tree.leaves(result.multipliers)) == 2


@pytest.mark.thorough
def test_roles_of_collections_and_variables():
    class Adapter(nnx.Variable):
        pass

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(6, 6, use_bias=False, rngs=rngs)
            self.adapter = Adapter(3.0 * jnp.eye(6))

        def __call__(self, x):
            return self.linear(x) @ self.adapter[...]

    found = jinit.calibrate(Net(nnx.Rngs(0)), X, loss).report
    assert [row.path for row in found.rows] == ["linear/kernel"]
    roles = {Adapter: "parameter", nnx.Param: "statistic"}
    result = jinit.calibrate(Net(nnx.Rngs(0)), X, loss, roles=roles, mode="explicit")
    assert [row.path for row in result.report.rows] == ["adapter"]
    y = result.apply_fn(result.params, X)
    assert float(jnp.mean(y**2)) == pytest.approx(1, rel=1e-3)

    variables = {"params": {"w": 2 * jnp.eye(6)}, "adapters": {"w": 3 * jnp.eye(6)}}

    def model(v, x):
        return x @ v["params"]["w"] @ v["adapters"]["w"]

    for mode in ("fold", "explicit"):
        result = jinit.calibrate(
            variables, model, X, loss, roles={"adapters": "parameter"}, mode=mode
        )
        assert [row.path for row in result.report.rows] == ["params/w", "adapters/w"]
        y = result.apply_fn(result.params, X)
        assert float(jnp.mean(y**2)) == pytest.approx(1, rel=1e-3)
    with pytest.raises(ValueError, match=r"^roles says 'trained' of adapters: write 'parameter'"):
        jinit.calibrate(variables, model, X, loss, roles={"adapters": "trained"})


def test_another_collection_in_explicit_mode():
    variables = {"weights": {"w": 2 * jnp.eye(6)}, "constants": {"w": 3 * jnp.eye(6)}}
    result = jinit.calibrate(
        variables, lambda v, x: x @ v["weights"]["w"] @ v["constants"]["w"], X, loss,
        collection="weights", mode="explicit",
    )  # fmt: skip
    y = result.apply_fn(result.params, X)
    assert float(jnp.mean(y**2)) == pytest.approx(9, rel=1e-3)


# -- Equinox ------------------------------------------------------------------------------------


def test_what_is_no_array_comes_back_as_it_was():
    mlp = eqx.nn.MLP(6, 4, 8, 2, key=jax.random.key(0))
    model = eqx.nn.Sequential([mlp, eqx.nn.Dropout(0.5, inference=True)])
    result = jinit.calibrate(model, batched, X, loss)
    _, dropout = result.params.layers
    assert result.params.layers[0].activation is mlp.activation
    assert result.params.layers[0].final_activation is mlp.final_activation
    assert (dropout.p, dropout.inference) == (0.5, True)
    assert type(dropout.p) is float
    assert result.multipliers.layers[0].activation is None
    assert jax.tree.structure(result.multipliers) == jax.tree.structure(
        eqx.filter(model, eqx.is_inexact_array)
    )


def test_keys_of_equinoxs_dropout_are_drawn():
    model = eqx.nn.Sequential([eqx.nn.Linear(6, 4, key=jax.random.key(0)), eqx.nn.Dropout(0.5)])

    def call(m, x, *, rngs):
        return jax.vmap(m)(x, key=jax.random.split(rngs["dropout"], len(x)))

    result = jinit.calibrate(model, call, X, loss, rngs="dropout")
    assert [row.path for row in result.report.rows] == ["layers/0/weight"]


def test_a_batch_for_a_module_of_one_example():
    mlp = eqx.nn.MLP(6, 4, 8, 1, key=jax.random.key(0))
    with pytest.raises(TypeError, match="contracting dimensions") as caught:
        jinit.calibrate(mlp, X, loss)
    note = (
        "MLP was called with all of its inputs; if it takes one example, as Equinox's layers do, "
        "give it one, or pass for a batch lambda m, x: jax.vmap(m)(x) after the model"
    )
    assert note in caught.value.__notes__


# -- errors -------------------------------------------------------------------------------------


class NoCall(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(6, 4, rngs=nnx.Rngs(0))


ALONE = "as in jinit.calibrate(model, x, loss)"
WITH_CALL = "as in jinit.calibrate(model, lambda m, x: m(x), x, loss)"
LINEAR = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
BOUND = Linen().bind(linen_variables())
ERRORS = {
    "no __call__": (
        (NoCall(), X, loss),
        "params is an NNX object (NoCall), which cannot be called; pass a function of "
        f"(model, *inputs) after it, {WITH_CALL}",
    ),
    "the model twice": (
        (LINEAR, LINEAR, X, loss),
        "apply_fn is an NNX object (Linear), but an NNX object (Linear) holds its variables "
        f"itself; pass it alone, {ALONE}",
    ),
    "a bound module and its apply": (
        (BOUND, Linen().apply, X, loss),
        "apply_fn is the function apply, but a linen module (Linen) holds its variables itself; "
        f"pass it alone, {ALONE}",
    ),
    "the model second": (
        ({"w": X}, LINEAR, X, loss),
        "apply_fn is an NNX object (Linear); it holds its variables, so pass it first, " + ALONE,
    ),
    "an Equinox module second": (
        ({"w": X}, Equinox(), X, loss),
        "apply_fn is an Equinox module (Equinox); it holds its variables, so pass it first, "
        + ALONE,
    ),
    "a bound module second": (
        (linen_variables(), BOUND, X, loss),
        "apply_fn is a linen module (Linen); it holds its variables, so pass it first, " + ALONE,
    ),
    "an input for the function": (
        (LINEAR, X, X, loss),
        "apply_fn is an array of float32[64, 6]; pass a function of (model, *inputs), " + WITH_CALL,
    ),
    "a class": (
        (nnx.Linear, X, X, loss),
        "params is the class Linear, which is not a tree of arrays; pass an instance of it; the "
        "order is params, apply_fn, dummy_input, dummy_loss",
    ),
    "a pair for Haiku's Transformed": (
        ((haiku_params(), {}), haiku, X, loss),
        "params is a pair, but apply_fn is Haiku's Transformed, which has no state: pass the "
        "params alone",
    ),
    "params alone for a TransformedWithState": (
        (haiku_params(), haiku_with_state, X, loss),
        "params is a dict, but apply_fn is Haiku's TransformedWithState: pass (params, state), as "
        "its init returned them",
    ),
    "no loss": (
        (LINEAR, lambda m, x: m(x), X),
        "dummy_loss is None, which cannot be called; pass a function of (output) or (output, key); "
        "the order is params, apply_fn, dummy_input, dummy_loss",
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS)
def test_the_argument_is_named(call, arguments, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        call(*arguments)


def test_a_state_that_the_function_closed_over():
    model = nnx.Sequential(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    with pytest.raises(Exception, match="Cannot mutate BatchStat") as caught:
        jinit.calibrate(params, lambda p, x: nnx.merge(graph, p, rest)(x), X, loss)
    note = (
        f"apply_fn writes to an NNX object that it closed over; pass the model itself, {WITH_CALL}"
    )
    assert note in caught.value.__notes__


@pytest.mark.parametrize("mode", ["fold", "explicit"])
@pytest.mark.parametrize("make", [lambda: Nnx(nnx.Rngs(0)), lambda: BOUND], ids=["NNX", "bound"])
def test_a_file_of_a_module_that_calls_itself_needs_only_one_like_it(make, mode, tmp_path):
    path, result = tmp_path / "calibration.npz", jinit.calibrate(make(), X, loss, mode=mode)
    result.save(path)
    found = jinit.Calibration.load(path, like=make())
    np.testing.assert_array_equal(
        found.apply_fn(found.params, X), result.apply_fn(result.params, X)
    )
    found.save(path)
    again = jinit.Calibration.load(path, like=make())
    np.testing.assert_array_equal(again.apply_fn(again.params, X), found.apply_fn(found.params, X))
    alone = jinit.Calibration.load(path)
    message = (
        f"{type(make()).__name__} is not in this calibration: a file holds the arrays of a module; "
        "hand one that was constructed alike to Calibration.load, as like="
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        alone.apply_fn(alone.params, X)


def test_an_older_file_does_not_say_that_a_module_called_itself(tmp_path):
    path, result = tmp_path / "calibration.npz", jinit.calibrate(LINEAR, X, loss, samples=1)
    result.save(path)
    with np.load(path) as archive:
        entries = dict(archive)
    head = json.loads(str(entries["json"]))
    del head["alone"]
    np.savez(path, **entries | {"json": np.array(json.dumps(head))})
    found = jinit.Calibration.load(path, like=LINEAR)
    np.testing.assert_array_equal(found.params(X), result.params(X))
    with pytest.raises(ValueError, match=r"^Linear is not in this calibration: a file holds no fu"):
        found.apply_fn(found.params, X)


def test_wrapping_the_leaf_modules_of_other_frameworks():
    message = (
        "wrap_all_leaf_modules takes a linen module, not Linear; for other frameworks and "
        'functions use calibrate(..., mode="explicit"), which needs no wrapper'
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        jinit.empirical.wrap_all_leaf_modules(LINEAR)


# -- under JAX's transformations and modes ------------------------------------------------------


@pytest.mark.cases
@pytest.mark.parametrize(
    ("make", "call"),
    [
        (lambda n: Stateful(nnx.Rngs(n)), None),
        (lambda n: eqx.nn.MLP(6, 4, 8, 1, key=jax.random.key(n)), batched),
    ],
    ids=["NNX", "Equinox"],
)
def test_a_second_calibration_of_an_equal_module_compiles_nothing(count_compilations, make, call):
    models = make(0), make(1)
    jinit.calibrate(models[0], call, X, loss, samples=2)
    with count_compilations() as compiled:
        jinit.calibrate(models[1], call, X, loss, samples=2)
    assert len(compiled) == 0


@pytest.mark.cases
@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3)], ids=["typed", "legacy"])
def test_keys_of_both_kinds(key):
    result = jinit.calibrate(Stateful(nnx.Rngs(0)), X, loss, key=key)
    assert all(0.8 < row.activation_after < 1.25 for row in result.report.rows if not row.note)
    params = haiku_params()
    tuned = jinit.empirical_init(params, haiku, X, loss, key=key)
    assert float(jnp.mean(haiku.apply(tuned, None, X) ** 2)) == pytest.approx(1, rel=1e-3)


def measured(model, x, call=None):
    return jinit.calibrate(model, call, x, loss, samples=2).params


@pytest.mark.thorough
def test_within_jit():
    expected = measured(Stateful(nnx.Rngs(0)), X)
    tuned = nnx.jit(measured)(Stateful(nnx.Rngs(0)), X)
    graph, state = nnx.split(Stateful(nnx.Rngs(0)))
    traced = jax.jit(lambda s, x: nnx.split(measured(nnx.merge(graph, s), x))[1])(state, X)
    for found in (tuned, nnx.merge(graph, traced)):
        for ours, theirs in zip(leaves_of(found), leaves_of(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    found = eqx.filter_jit(measured)(Equinox(), X, batched)
    plain = measured(Equinox(), X, batched)
    for ours, theirs in zip(numbers(found), numbers(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.thorough
def test_x64_and_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        result = jinit.calibrate(Stateful(nnx.Rngs(0)), X, loss, samples=2)
    assert isinstance(result.params, Stateful)
    with jax.enable_x64(True):
        layer = nnx.Linear(6, 32, use_bias=False, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        x = jax.random.normal(jax.random.key(1), (64, 6), jnp.float64)
        kernel = np.asarray(layer.kernel[...])
        tuned = jinit.empirical_init(layer, x, loss)
        rms = np.sqrt(np.mean((np.asarray(x) @ kernel) ** 2))
        assert tuned.kernel.dtype == jnp.float64
        np.testing.assert_allclose(tuned.kernel[...], kernel / rms, rtol=1e-6)


# -- what is kept -------------------------------------------------------------------------------


@pytest.mark.cases
@pytest.mark.parametrize("mode", ["fold", "explicit"])
def test_a_file_gives_the_module_back(tmp_path, mode):
    model = Stateful(nnx.Rngs(0))
    result = jinit.calibrate(model, X, loss, mode=mode, samples=2)
    result.save(tmp_path / "calibration.npz")
    found = jinit.Calibration.load(tmp_path / "calibration.npz", Stateful.__call__, like=model)
    assert isinstance(found.params, Stateful)
    for ours, theirs in zip(leaves_of(found.params), leaves_of(result.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert found.report == result.report
    np.testing.assert_array_equal(
        found.apply_fn(found.params, X), result.apply_fn(result.params, X)
    )
    found.transform().init(nnx.state(model, nnx.Param))
    message = (
        "like=Linear is not of the kind that was calibrated: they differ in bias, dropout/rngs/"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        jinit.Calibration.load(tmp_path / "calibration.npz", like=LINEAR)


def test_a_file_keeps_what_jax_has_no_dtype_for(tmp_path):
    model = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    model.table = nnx.data(np.arange(3.0) / 3)
    jinit.calibrate(model, X, loss, samples=1).save(tmp_path / "calibration.npz")
    found = jinit.Calibration.load(tmp_path / "calibration.npz", like=model).params
    np.testing.assert_array_equal(found.table, model.table)
    assert found.table.dtype == np.float64


def test_what_draws_without_a_key_says_how_to_give_one():
    layers = [eqx.nn.Linear(6, 4, key=jax.random.key(0)), eqx.nn.Dropout(0.5)]
    with pytest.raises(RuntimeError, match="requires a key") as caught:
        jinit.calibrate(eqx.nn.Sequential(layers), batched, X, loss, samples=1)
    assert "hands rngs['dropout'] on" in str(caught.value.__notes__)


def test_a_module_has_no_collections():
    message = (
        "collection='kernel' names an entry of a tree of variables, and params is a Linear; "
        "leave it out, say by roles= what its variables are, or by include= what is tuned"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        jinit.calibrate(LINEAR, X, loss, collection="kernel")


def test_without_a_loss_the_form_without_a_function_is_named():
    with pytest.raises(TypeError, match="dummy_loss is None") as caught:
        jinit.calibrate(LINEAR, lambda y: y.sum(), X)
    assert "as in jinit.calibrate(model, x, loss)" in str(caught.value.__notes__)
    with pytest.raises(TypeError, match="leave rngs out where the module draws by itself"):
        jinit.calibrate(LINEAR, X, loss, rngs="dropout")


LOADED_WRONG = {
    "a module of other shapes": (
        {"like": nnx.Linear(6, 5, rngs=nnx.Rngs(0))},
        ValueError,
        "like=Linear has arrays of other shapes than the module that was calibrated: bias (is "
        "(5,), was (4,)), kernel (is (6, 5), was (6, 4)); construct it with the same arguments",
    ),
    "a class": (
        {"like": nnx.Linear},
        TypeError,
        "like is the class Linear; pass a module that holds its variables, constructed as the one "
        "that was calibrated",
    ),
    "the module as apply_fn": (
        {"apply_fn": LINEAR},
        TypeError,
        "apply_fn is a module that holds its variables (Linear); pass it as like=, and as apply_fn "
        "what calls it, such as lambda m, x: m(x)",
    ),
}


@pytest.mark.parametrize("case", LOADED_WRONG)
def test_what_a_file_is_read_with_is_named(tmp_path, case):
    given, kind, message = LOADED_WRONG[case]
    jinit.calibrate(LINEAR, X, loss, samples=1).save(tmp_path / "calibration.npz")
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        jinit.Calibration.load(tmp_path / "calibration.npz", **given)


def test_a_file_is_read_with_linens_module(tmp_path):
    module = Linen()
    variables = module.init(jax.random.key(0), X)
    result = jinit.calibrate(variables, module, X, loss, samples=1)
    result.save(tmp_path / "calibration.npz")
    found = jinit.Calibration.load(tmp_path / "calibration.npz", module)
    y = result.apply_fn(result.params, X)
    np.testing.assert_array_equal(found.apply_fn(found.params, X), y)


@pytest.mark.thorough
def test_a_file_of_an_equinox_module(tmp_path):
    model = Equinox()
    result = jinit.calibrate(model, batched, X, loss, samples=2)
    result.save(tmp_path / "calibration.npz")
    found = jinit.Calibration.load(tmp_path / "calibration.npz", batched, like=model)
    for ours, theirs in zip(numbers(found.params), numbers(result.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
