"""A linen module at a level stands wherever the module stood."""

import copy
import functools
import pickle
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.training.train_state import TrainState

from jinit import amp
from tests.amp.reference import bits, dtypes, operand_dtypes

LEVELS = ["O2", "O0", "O1", "O3"]  # the quick suite runs the first

pytestmark = pytest.mark.cases
X = jax.random.normal(jax.random.key(0), (4, 8))
KEY = jax.random.key(1)
RNGS = {"params": KEY, "dropout": jax.random.key(2)}


class Net(nn.Module):
    width: int = 8

    def setup(self):
        self.first = nn.Dense(self.width)
        self.norm = nn.BatchNorm(momentum=0.5)
        self.drop = nn.Dropout(0.5)
        self.blocks = [nn.Dense(8), nn.Dense(8)]
        self.heads = {"a": nn.Dense(3)}

    def encode(self, x, train=False):
        return self.norm(self.first(x), use_running_average=not train)

    def __call__(self, x, train=False):
        x = self.drop(self.encode(x, train), deterministic=not train)
        for block in self.blocks:
            x = jnp.tanh(block(x))
        return self.heads["a"](x)


def at(level, model=None, half="bfloat16", **keywords):
    return amp.initialize(model or Net(), None, level, half_dtype=half, **keywords)


def close(found, wanted, atol=0.06):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(
            np.asarray(mine, np.float32), np.asarray(theirs, np.float32), atol=atol
        )


PLAIN = Net().init(KEY, X)


@pytest.mark.parametrize("rngs", [KEY, jax.random.PRNGKey(1), RNGS], ids=["key", "legacy", "named"])
@pytest.mark.parametrize("level", LEVELS)
def test_init_draws_what_the_module_draws(level, rngs):
    found, wanted = at(level).init(rngs, X), Net().init(rngs, X)
    assert dtypes(found["batch_stats"]) == {"float32"}
    assert dtypes(found["params"]) == {"bfloat16" if level == "O3" else "float32"}
    if level != "O3":
        assert bits(found) == bits(wanted)
    cast = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), wanted["params"])
    assert bits(jax.tree.map(lambda leaf: leaf.astype("bfloat16"), found["params"])) == bits(cast)
    assert bits(found["batch_stats"]) == bits(wanted["batch_stats"])


@pytest.mark.parametrize(
    "options",
    [
        {"opt_level": "O2", "master_weights": "optimizer"},
        {"opt_level": "O3", "keep_batchnorm_fp32": True},
        {"opt_level": "O3", "keep_fp32": lambda path, kind: kind is nn.BatchNorm},
    ],
    ids=["masters", "batch norm", "predicate"],
)
def test_kept_norms_are_drawn_float32_where_the_others_are_half(options):
    """Found by their type: the name says nothing."""
    params = amp.initialize(Net(), half_dtype="bfloat16", **options).init(KEY, X)["params"]
    assert dtypes(params.pop("norm")) == {"float32"}
    assert dtypes(params) == {"bfloat16"}


def test_init_takes_what_the_modules_init_takes():
    model = at("O3")
    with_method = model.init(KEY, X, method="encode")
    assert set(with_method["params"]) == {"first", "norm"}
    assert set(at("O3", nn.Dense(2)).init(KEY, inputs=X, mutable=["params"])) == {"params"}
    assert "intermediates" in model.init(
        KEY, X, capture_intermediates=True, mutable=["params", "batch_stats", "intermediates"]
    )
    lazily = model.lazy_init(KEY, jax.ShapeDtypeStruct(X.shape, X.dtype))
    assert bits(lazily) == bits(model.init(KEY, X))
    keep = {"keep_fp32": lambda path, kind: kind is nn.BatchNorm}
    lazily = at("O3", **keep).lazy_init(KEY, jax.ShapeDtypeStruct(X.shape, X.dtype))
    assert dtypes(lazily["params"]["norm"]) == {"float32"}


@pytest.mark.parametrize("level", LEVELS)
def test_init_under_jit_eval_shape_and_vmap(level):
    model = at(level)
    wanted = model.init(KEY, X)
    close(jax.jit(model.init)(KEY, X), wanted, atol=1e-2)
    shapes = jax.eval_shape(model.init, KEY, X)
    assert jax.tree.map(lambda s: (s.shape, s.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), wanted
    )
    many = jax.vmap(lambda key: model.init(key, X))(jax.random.split(KEY, 3))
    assert many["params"]["first"]["kernel"].shape == (3, 8, 8)


@pytest.mark.parametrize("level", LEVELS)
def test_init_with_output(level):
    model = at(level)
    output, variables = model.init_with_output(KEY, X)
    wanted, _ = Net().init_with_output(KEY, X)
    assert bits(variables) == bits(model.init(KEY, X))
    assert bits(output) == bits(wanted)
    half = at("O2", cast_model_outputs="bfloat16").init_with_output(KEY, X)[0]
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "method",
    [None, "encode", Net.encode, lambda module, x, **k: module.blocks[0](x)],
    ids=["call", "name", "function", "lambda"],
)
def test_apply_with_a_method(level, method):
    model = at(level)
    variables = model.init(KEY, X)
    found = model.apply(variables, X, method=method)
    wanted = Net().apply(PLAIN, X, method=method)
    assert found.dtype == jnp.float32
    if level == "O0":
        assert bits(found) == bits(wanted)
    close(found, wanted)
    assert bits(model(variables, X, method=method)) == bits(found)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mutable", [["batch_stats"], "batch_stats", True, nn.DenyList("params")])
def test_apply_with_mutable_collections_and_keys(level, mutable):
    model = at(level)
    keywords = {"mutable": mutable, "rngs": {"dropout": KEY}, "train": True}
    output, updated = model.apply(model.init(KEY, X), X, **keywords)
    wanted, statistics = Net().apply(PLAIN, X, **keywords)
    assert output.dtype == jnp.float32
    assert dtypes(updated["batch_stats"]) == {"float32"}
    close(updated["batch_stats"], statistics["batch_stats"], atol=0.01)
    close(output, wanted, atol=0.1)
    if level == "O0":
        assert bits((output, updated)) == bits((wanted, statistics))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("capture", [True, lambda module, name: isinstance(module, nn.Dense)])
@pytest.mark.parametrize("mutable", [False, ["batch_stats"]])
def test_apply_captures_intermediates_in_the_dtypes_of_the_function(level, capture, mutable):
    model = at(level)
    variables = model.init(KEY, X)
    output, updated = model.apply(variables, X, capture_intermediates=capture, mutable=mutable)
    wanted, theirs = Net().apply(PLAIN, X, capture_intermediates=capture, mutable=mutable)
    close(output, wanted)
    close(updated, theirs)
    inside = "float32" if level in ("O0", "O1") else "bfloat16"
    assert dtypes(updated["intermediates"]["blocks_0"]) == {inside}


def test_tabulate_is_the_modules():
    keywords = {"console_kwargs": {"force_terminal": False, "width": 100}}
    found = at("O2").tabulate(KEY, X, **keywords)
    assert found == Net().tabulate(KEY, X, **keywords)
    assert "Net Summary" in found


def test_the_fields_of_the_module_can_be_read():
    model = at("O2", Net(width=16, name="net"))
    assert (model.width, model.name, model.module.width) == (16, "net", 16)


@pytest.mark.parametrize("level", LEVELS)
def test_a_bound_model_is_called_like_the_module(level):
    model = at(level)
    variables = model.init(KEY, X)
    bound, plain = model.bind(variables), Net().bind(PLAIN)
    assert bits(bound(X)) == bits(model(variables, X))
    close(bound.encode(X), plain.encode(X))
    close(bound.first(X), plain.first(X))
    close(bound.blocks[1](X), plain.blocks[1](X))
    close(bound.heads["a"](X), plain.heads["a"](X))
    assert (bound.width, bound.first.features, bound.name) == (8, 8, None)
    assert bits(bound.variables) == bits(variables)
    assert bound.unbind() == (model, variables)
    run = {"O2": "bfloat16", "O3": "bfloat16", "O1": "bfloat16", "O0": "float32"}[level]
    for part in (bound, bound.first, bound.encode, bound.blocks[0]):
        assert set(operand_dtypes(part, X)["dot_general"]) == {run}


@pytest.mark.parametrize("level", LEVELS)
def test_a_bound_model_keeps_what_a_call_updates_and_draws_anew(level):
    model = at(level)
    variables = model.init(KEY, X)
    keywords = {"rngs": {"dropout": KEY}, "mutable": ["batch_stats"]}
    bound, plain = model.bind(variables, **keywords), Net().bind(PLAIN, **keywords)
    first, wanted = bound(X, train=True), plain(X, train=True)
    close(first, wanted, atol=0.1)
    close(bound.variables["batch_stats"], dict(plain.variables["batch_stats"]), atol=0.01)
    assert bits(first) != bits(bound(X, train=True))  # another mask
    moved = bits(bound.variables)
    bound.encode(X, train=True)
    assert bits(bound.variables) != moved  # a method's updates are kept as well
    bound.norm(X, use_running_average=False)
    assert dtypes(bound.variables["batch_stats"]) == {"float32"}


def test_a_bound_model_that_nothing_may_update_says_so_as_flax():
    bound = at("O2").bind(PLAIN, rngs={"dropout": KEY})
    with pytest.raises(flax.errors.ModifyScopeVariableError, match="batch_stats"):
        bound(X, train=True)


def test_paths_of_a_bound_submodule_are_those_of_the_model():
    """So that what keep_fp32 names is kept whoever calls it."""
    seen = set()
    model = at("O2", keep_fp32=lambda path, kind: seen.add(path) or path.startswith("blocks_0"))
    bound = model.bind(PLAIN)
    assert set(operand_dtypes(bound.blocks[0], X)["dot_general"]) == {"float32"}
    assert set(operand_dtypes(bound.blocks[1], X)["dot_general"]) == {"bfloat16"}
    assert "blocks_1/kernel" in seen
    assert "kernel" not in seen


def test_the_repr_of_models_and_of_parts():
    bound = at("O2").bind(PLAIN)
    assert repr(at("O2")) == "<Net.apply at O2 with bfloat16>"
    assert repr(bound) == "<Net.apply at O2 with bfloat16, bound>"
    assert repr(bound.heads["a"]) == "<heads/a of Net.apply at O2 with bfloat16, bound>"


@pytest.mark.parametrize("level", LEVELS)
def test_a_model_is_equal_to_one_of_an_equal_module_and_pickles(level):
    model = at(level)
    others = at(level), at(level, Net().apply), pickle.loads(pickle.dumps(model))
    for other in (*others, copy.copy(model), copy.deepcopy(model)):
        assert (other, hash(other)) == (model, hash(model))
        assert bits(other(PLAIN, X) if level != "O3" else 0) == bits(
            model(PLAIN, X) if level != "O3" else 0
        )
    assert at(level, Net(width=4)) != model
    assert at(level, half="float16") != model
    assert model != Net()


def test_equal_models_share_a_compilation():
    traces = []

    class Counted(nn.Module):
        @nn.compact
        def __call__(self, x):
            traces.append(1)
            return nn.Dense(2)(x)

    variables = Counted().init(KEY, X)
    call = jax.jit(lambda model, variables, x: model.apply(variables, x), static_argnums=0)
    traces.clear()
    for level in ("O2", "O2", "O3", "O2"):
        call(at(level, Counted()), variables, X)
    assert len(traces) == 2


def test_a_module_with_a_field_that_has_no_hash():
    class Odd(nn.Module):
        shift: jax.Array

        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x) + self.shift[None]

    odd = Odd(jnp.ones(2))
    model = at("O2", odd)
    assert model == at("O2", odd)
    assert model != at("O2", Odd(jnp.zeros(2)))
    assert isinstance(hash(model), int)
    assert model(model.init(KEY, X), X).dtype == jnp.float32


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("apply", ["method", "call"])
def test_a_train_state_steps_as_one_of_the_plain_module(level, apply, count_compilations):
    model, tx = amp.initialize(Net(), optax.sgd(0.1), level, half_dtype="bfloat16")

    class State(TrainState):
        statistics: dict

    def make(net, tx, apply_fn):
        variables = net.init(KEY, X)
        return State.create(
            apply_fn=apply_fn,
            params=variables["params"],
            statistics=variables["batch_stats"],
            tx=tx,
        )

    def step(state, key):
        def loss_fn(params):
            variables = {"params": params, "batch_stats": state.statistics}
            keywords = {"mutable": ["batch_stats"], "rngs": {"dropout": key}}
            y, updated = state.apply_fn(variables, X, train=True, **keywords)
            return ((y - 1) ** 2).mean(), updated["batch_stats"]

        value_and_grad = amp.value_and_grad(loss_fn, state.opt_state, has_aux=True)
        (loss, statistics), grads = value_and_grad(state.params)
        return state.apply_gradients(grads=grads, statistics=statistics), loss

    ours = make(model, tx, model.apply if apply == "method" else model)
    theirs = make(Net(), amp.loss_scaling(optax.sgd(0.1), 1.0), Net().apply)
    jitted, (first, *later) = jax.jit(step), jax.random.split(KEY, 3)
    (ours, _), (theirs, _) = jitted(ours, first), jitted(theirs, first)
    with count_compilations() as compiled:
        for key in later:
            (ours, loss), (theirs, wanted) = jitted(ours, key), jitted(theirs, key)
    assert [name for name in compiled if "step" in name] == []
    if level == "O0":
        assert bits((ours.params, ours.statistics, loss)) == bits(
            (theirs.params, theirs.statistics, wanted)
        )
    close((ours.statistics, loss), (theirs.statistics, wanted), atol=0.1)
    close(ours.params, theirs.params, atol=0.1)
    assert dtypes(ours.params) == {"bfloat16" if level == "O3" else "float32"}
    assert dtypes(ours.statistics) == {"float32"}


@pytest.mark.thorough
@pytest.mark.parametrize("level", LEVELS)
def test_transformations_of_jax(level):
    model = at(level)
    variables = model.init(KEY, X)
    wanted = model(variables, X)
    close(jax.jit(model.apply)(variables, X), wanted, atol=0.02)
    rows = jax.vmap(model.apply, in_axes=(None, 0))(variables, X[:, None])
    close(rows[:, 0], wanted, atol=0.02)
    assert jax.eval_shape(model.apply, variables, X).dtype == jnp.float32
    loss = lambda variables: (model.apply(variables, X) ** 2).sum()  # noqa: E731
    grads = jax.grad(loss)(variables)
    exact = jax.grad(lambda variables: (Net().apply(variables, X) ** 2).sum())(PLAIN)
    assert jax.tree.map(jnp.result_type, grads["params"]) == jax.tree.map(
        jnp.result_type, variables["params"]
    )
    scale = max(float(abs(leaf).max()) for leaf in jax.tree.leaves(exact["params"]))
    close(grads["params"], exact["params"], atol=0.05 * scale)


@pytest.mark.parametrize("level", LEVELS)
def test_the_modes_of_jax(level):
    model = at(level)
    with jax.checking_leaks():
        variables = jax.jit(model.init)(KEY, X)
        wanted = jax.jit(model.apply)(variables, X)
    with jax.numpy_dtype_promotion("strict"):
        plain = at(level, nn.Dense(3))
        stored = plain.init(KEY, X)
        assert plain.apply(stored, X).dtype == jnp.float32
    with jax.enable_x64(True):
        drawn = model.init(KEY, X)
        assert dtypes(drawn["batch_stats"]) == {"float32"}
        assert dtypes(drawn["params"]) == {"bfloat16" if level == "O3" else "float32"}
        assert model.apply(variables, X).dtype == jnp.float32
    close(model.apply(variables, X), wanted, atol=0.02)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=True, name="statistics")(nn.Dense(8)(x))


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        scan = nn.scan(
            lambda block, x, _: (block(x), None),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=2,
        )
        return scan(Block(), x, None)[0]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "module", [nn.jit(Block)(), nn.remat(Block)(), Scanned(), nn.Sequential([nn.jit(Block)()])]
)
def test_modules_that_flax_transformed(level, module):
    model = at(level, module)
    variables = model.init(KEY, X)
    plain = module.init(KEY, X)
    wanted = module.apply(plain, X)
    close(model(variables, X), wanted, atol=0.1)
    # What was traced without the casts is not used with them, and the other way round.
    assert bits(module.apply(plain, X)) == bits(wanted)


def test_types_inside_a_jitted_module_that_was_traced_before():
    module = nn.Sequential([nn.jit(Block)()])
    plain = module.init(KEY, X)
    module.apply(plain, X)
    model = at("O2", module)
    assert nn.BatchNorm in model.module_types(plain, X).values()
    kept = model.policy.kept_paths(plain, model.module_types(plain, X))
    assert {path[-1] for path in kept} == {"statistics"}


def test_inside_another_module_as_a_function_of_its_parameters():
    inner = at("O2", nn.Dense(8))

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            params = self.param("inner", lambda key: inner.init(key, x)["params"])
            return nn.Dense(2)(inner.apply({"params": params}, x))

    variables = Outer().init(KEY, X)
    assert operand_dtypes(Outer().apply, variables, X)["dot_general"] == {
        "bfloat16": 1,
        "float32": 1,
    }


def test_inside_another_module_as_a_submodule_it_says_what_to_do():
    class Outer(nn.Module):
        inner: object

        def __call__(self, x):
            return self.inner(x)

    with pytest.raises(TypeError, match="Inside another linen module initialize the outer one"):
        Outer(at("O2", nn.Dense(8))).init(KEY, X)


def test_wrapped_modules_and_classes_of_defaults():
    from jinit import keras_defaults

    model = at("O3", keras_defaults().wrap(Net()))
    found = model.init(KEY, X)
    assert dtypes(found["params"]) == {"bfloat16"}
    assert model.apply(found, X).shape == (4, 3)


def test_disabled_it_is_the_module():
    """With the same methods, so that the same script runs."""
    module = Net()
    model, _ = amp.initialize(module, optax.sgd(0.1), "O3", enabled=False)
    assert model == module.apply
    assert hash(model) == hash(module.apply)
    assert repr(model) == "<Net.apply without mixed precision>"
    variables = model.init(KEY, X)
    assert bits(variables) == bits(PLAIN)
    assert bits(model.init_with_output(KEY, X)) == bits(module.init_with_output(KEY, X))
    keywords = {"mutable": ["batch_stats"], "rngs": {"dropout": KEY}, "train": True}
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), variables)
    for given in (variables, half):
        assert bits(model.apply(given, X, **keywords)) == bits(module.apply(given, X, **keywords))
    assert bits(model(variables, X)) == bits(module.apply(variables, X))
    assert isinstance(model.bind(variables), Net)
    assert model != at("O3")
    assert at("O3") != model


FIRST = "Net.apply at O2 with bfloat16 takes its variables first, as model(variables, *inputs), "


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: at("O2")(X),
            TypeError,
            f"{FIRST}not an array of float32[4, 8]: pass what init returned, or bind it once, as "
            "model.bind(variables)(*inputs). Inside another linen module initialize the outer one",
        ),
        (
            lambda: at("O2").apply(X, PLAIN),
            TypeError,
            f"{FIRST}not an array of float32[4, 8]: they go before the inputs. Inside another "
            "linen module initialize the outer one",
        ),
        (
            lambda: at("O2").bind(X),
            TypeError,
            f"{FIRST}not an array of float32[4, 8]: pass what init returned, or bind it once, as "
            "model.bind(variables)(*inputs). Inside another linen module initialize the outer one",
        ),
        (
            lambda: at("O2").encode(X),
            AttributeError,
            "'LinenModel' object has no attribute 'encode': write model.apply(variables, *inputs, "
            "method='encode'), or model.bind(variables).encode(*inputs)",
        ),
        (
            lambda: at("O2").nothing,
            AttributeError,
            "'LinenModel' object has no attribute 'nothing'",
        ),
        (
            lambda: amp.initialize(at("O2")),
            ValueError,
            "the model <Net.apply at O2 with bfloat16> was initialized twice",
        ),
        (
            lambda: amp.initialize([at("O2").apply], opt_level="O3"),
            ValueError,
            "the model <Net.apply at O2 with bfloat16> was initialized twice",
        ),
        (
            lambda: amp.initialize(optax.sgd(0.1), Net()),
            TypeError,
            "a model must be an apply_fn(variables, *inputs) or a module, not "
            "GradientTransformationExtraArgs (an optimizer: in amp.initialize models go before "
            "optimizers)",
        ),
        (
            lambda: amp.initialize(Net().apply, Net()),
            TypeError,
            "an optimizer must be an optax.GradientTransformation, not a linen module (Net) "
            "(in amp.initialize models go before optimizers)",
        ),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        call()


def test_half_parameters_of_a_module_are_refused_where_they_are_drawn():
    text = r"opt_level 'O2' takes float32 parameters .* kernel \(bfloat16\)"
    with pytest.raises(ValueError, match=text):
        at("O2", nn.Dense(2, param_dtype="bfloat16")).init(KEY, X)
    assert dtypes(at("O3", nn.Dense(2, param_dtype="bfloat16")).init(KEY, X)) == {"bfloat16"}


def test_mutable_without_has_aux_says_has_aux():
    model, tx = amp.initialize(Net(), optax.sgd(0.1), "O2", half_dtype="bfloat16")
    state = tx.init(PLAIN["params"])

    def loss_fn(params):
        variables = {**PLAIN, "params": params}
        y, updated = model.apply(variables, X, mutable=["batch_stats"])
        return y.mean(), updated

    with pytest.raises(TypeError, match="take the loss alone, and write has_aux=True where a func"):
        amp.value_and_grad(loss_fn, state)(PLAIN["params"])
    value, _ = amp.value_and_grad(loss_fn, state, has_aux=True)(PLAIN["params"])
    assert set(value[1]) == {"batch_stats"}


def test_explain_takes_the_model():
    found = amp.explain(at("O3"), at("O3").init(KEY, X), X)
    assert "dot_general" in {row.op for row in found.operations}
    assert {row.dtype for row in found.operations if row.op == "dot_general"} == {"bfloat16"}


def test_the_inputs_may_be_trees_and_keywords():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, batch, *, scale=1.0):
            return nn.Dense(2)(batch["a"]) * scale + nn.Dense(2)(batch["b"])

    model, batch = at("O2", Two()), {"a": X, "b": X}
    variables = model.init(KEY, batch, scale=2.0)
    found = model.apply(variables, batch, scale=jnp.float32(2))
    close(found, Two().apply(variables, batch, scale=2.0))
    frozen = flax.core.freeze(variables)
    assert bits(model.apply(frozen, batch, scale=2.0)) == bits(found)
    partial = functools.partial(model, scale=2.0)
    assert bits(partial(variables, batch)) == bits(found)
