"""NNX and Equinox modules at a level: what they are, what they compute, and what they carry."""

import copy
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jinit import amp

LEVELS = ("O2", "O0", "O1", "O3")  # the quick suite runs the first
HALF_LEVELS = ("O2", "O1", "O3")

pytestmark = pytest.mark.cases
X = jax.random.normal(jax.random.key(1), (32, 8))
T = jax.random.normal(jax.random.key(2), (32, 4))


class Net(nnx.Module):
    """A perceptron with statistics and a random stream."""

    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


class Small(eqx.Module):
    """An Equinox module with what is not an array among its leaves."""

    mlp: eqx.nn.MLP
    drop: eqx.nn.Dropout
    scale: float

    def __init__(self, key):
        self.mlp = eqx.nn.MLP(8, 4, 16, 2, key=key)
        self.drop = eqx.nn.Dropout(0.5, inference=True)
        self.scale = 0.5

    def __call__(self, x):
        return self.drop(self.mlp(x)) * self.scale


def initialize(model, level, *optimizer, half="bfloat16", **options):
    return amp.initialize(model, *optimizer, opt_level=level, half_dtype=half, **options)


def values(tree):
    """The leaves as arrays; a key as its data."""
    leaves = jax.tree.leaves(nnx.as_pure(tree))
    keys = [jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves]
    pairs = zip(leaves, keys, strict=True)
    return [np.asarray(jax.random.key_data(x) if key else x) for x, key in pairs]


def products(model, *args):
    return {row.dtype for row in amp.explain(model, *args).operations if row.op == "dot_general"}


# What a function does to a module that it is called with.


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("level", [*LEVELS, "autocast"])
def test_a_function_moves_the_state_of_its_module(level, jit):
    """As the plain call does: statistics in float32, another mask at every call."""

    def apply(model, x):
        return model(x)

    fn = amp.autocast(apply) if level == "autocast" else initialize(apply, level)
    run = nnx.jit(lambda m, x: fn(m, x)) if jit else fn
    plain, ours = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    for _ in range(3):
        expected, found = plain(X), run(ours, X)
        np.testing.assert_allclose(found, expected, atol=1e-5 if level == "O0" else 0.05)
        assert ((found == 0) == (expected == 0)).all()
    for name in ("mean", "var"):
        new, reference = getattr(ours.norm, name)[...], getattr(plain.norm, name)[...]
        assert new.dtype == jnp.float32
        # the momentum of 0.99 leaves a batch's rounding by half 3 hundredths of itself
        np.testing.assert_allclose(new, reference, atol=1e-6 if level == "O0" else 1e-3)
    assert ours.drop.rngs.count[...] == plain.drop.rngs.count[...] == 3
    np.testing.assert_array_equal(ours.first.kernel[...], plain.first.kernel[...])


def test_at_O0_a_call_is_the_plain_call_bit_for_bit():
    plain, ours = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    fn = initialize(lambda m, x: m(x), "O0")
    for _ in range(3):
        np.testing.assert_array_equal(fn(ours, X), plain(X))
    for new, old in zip(values(nnx.state(ours)), values(nnx.state(plain)), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("level", HALF_LEVELS)
def test_a_state_that_would_be_lost_is_an_error(level):
    """As of the recipe that merges a graph definition inside the function."""
    graphdef, state = nnx.split(Net(nnx.Rngs(0)))
    fn = initialize(lambda state, x: nnx.merge(graphdef, state)(x), level)
    if level == "O3":
        state = fn.policy.cast_to_param(state)
    with pytest.raises(ValueError, match=r"would be lost: drop/rngs/count \(RngCount\), norm/mean"):
        jax.jit(fn)(state, X)


@pytest.mark.parametrize("level", ["O2", "O3"])
@pytest.mark.parametrize("train", [True, False])
def test_products_after_a_batch_norm_are_half(level, train):
    model = initialize(Net(nnx.Rngs(0)), level)
    if not train:
        model.eval()
    assert products(model, X) == {"bfloat16"}
    assert model.norm.mean[...].sum() == 0  # explaining runs nothing
    rows = {row.op: row.dtype for row in amp.explain(model, X).operations}
    assert rows["rsqrt"] == "float32"


# A module at a level is the module.


def test_it_is_a_module_of_the_same_kind():
    given = Net(nnx.Rngs(0))
    before = values(nnx.state(given))
    model = initialize(given, "O2")
    assert isinstance(model, Net)
    assert type(model).__name__ == "Net"
    assert model.policy.opt_level == "O2"
    assert list(nnx.to_pure_dict(nnx.state(model))) == list(nnx.to_pure_dict(nnx.state(given)))
    model(X)
    for new, old in zip(values(nnx.state(given)), before, strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("level", LEVELS)
def test_parameters_are_stored_as_the_level_says(level):
    model = initialize(Net(nnx.Rngs(0)), level)
    stored = {str(leaf.dtype) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))}
    assert stored == {"bfloat16" if level == "O3" else "float32"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(nnx.state(model, nnx.BatchStat))} == {
        "float32"
    }


@pytest.mark.parametrize("level", LEVELS)
def test_train_and_eval(level):
    model, plain = initialize(Net(nnx.Rngs(0)), level), Net(nnx.Rngs(0))
    model.eval()
    plain.eval()
    np.testing.assert_array_equal(model(X), model(X))
    np.testing.assert_allclose(model(X), plain(X), atol=0.03)
    model.train()
    assert (model(X) != model(X)).any()


def test_a_module_at_a_level_is_split_merged_cloned_copied_and_pickled():
    model = initialize(Net(nnx.Rngs(0)), "O2")
    graphdef, state = nnx.split(model)
    assert hash(graphdef) == hash(nnx.split(initialize(Net(nnx.Rngs(0)), "O2"))[0])
    copies = {
        "merged": nnx.merge(graphdef, state),
        "cloned": nnx.clone(model),
        "copied": copy.deepcopy(model),
        "pickled": pickle.loads(pickle.dumps(model)),
    }
    model.eval()
    expected = model(X)
    for name, made in copies.items():
        assert type(made) is type(model), name
        made.eval()
        np.testing.assert_array_equal(made(X), expected, err_msg=name)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(8, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.linear(x)))


def test_transforms_of_nnx_take_it():
    def make(key):
        return initialize(Block(nnx.Rngs(key)), "O2")

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def forward(x, block):
        return block(x)

    keys = jax.random.split(jax.random.key(0), 3)
    blocks = nnx.vmap(make)(keys)
    expected, singles = X, [make(key) for key in keys]
    for block in singles:
        expected = block(expected)
    np.testing.assert_allclose(forward(X, blocks), expected, atol=1e-2)
    means = jnp.stack([block.norm.mean[...] for block in singles])
    np.testing.assert_allclose(blocks.norm.mean[...], means, atol=1e-3)
    assert nnx.vmap(lambda m, x: m(x), in_axes=(0, None))(blocks, X).shape == (3, 32, 8)
    one = singles[0]
    np.testing.assert_allclose(nnx.remat(lambda m, x: m(x))(one, X), one(X), atol=1e-6)
    abstract = nnx.eval_shape(lambda: make(keys[0]))
    assert abstract.linear.kernel.get_value().dtype == jnp.float32


def test_it_saves_and_loads_with_orbax(tmp_path):
    import orbax.checkpoint as ocp

    model = initialize(Net(nnx.Rngs(0)), "O3")
    model(X)
    state = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState)))
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "model", state)
        saver.wait_until_finished()
        loaded = saver.restore(tmp_path / "model", state)
    other = initialize(Net(nnx.Rngs(1)), "O3")
    nnx.update(other, loaded)
    for new, old in zip(
        values(nnx.state(other, nnx.Not(nnx.RngState))), values(state), strict=True
    ):
        assert new.dtype == old.dtype
        np.testing.assert_array_equal(new, old)


def test_shared_modules_and_the_users_variables():
    class Temperature(nnx.Variable):
        """What is trained here is Param alone; this is carried."""

    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(10, 8, rngs=rngs)
            self.blocks = nnx.List([nnx.Linear(8, 8, rngs=rngs)] * 2)
            self.temperature = Temperature(jnp.float32(2.0))
            self.seen = nnx.Variable(jnp.zeros((), jnp.int32))

        def __call__(self, tokens):
            self.seen[...] += tokens.size
            y = self.embed(tokens)
            for block in self.blocks:
                y = nnx.relu(block(y))
            return self.embed.attend(y) / self.temperature[...]

    plain, tokens = Tied(nnx.Rngs(0)), jnp.arange(6).reshape(2, 3)
    model = initialize(Tied(nnx.Rngs(0)), "O2")
    assert model.blocks[0] is model.blocks[1]
    y = nnx.jit(lambda m, x: m(x))(model, tokens)
    np.testing.assert_allclose(y, plain(tokens), atol=0.05)
    assert model.seen[...] == plain.seen[...] == 6
    assert model.temperature[...].dtype == jnp.float32
    assert model.blocks[0] is model.blocks[1]


@pytest.mark.thorough
def test_lora_and_sequential():
    base = nnx.Sequential(nnx.Linear(8, 8, rngs=nnx.Rngs(0)), nnx.relu)
    base.layers[0] = nnx.LoRA(8, 2, 8, base_module=base.layers[0], rngs=nnx.Rngs(1))
    model = initialize(base, "O2")
    assert products(model, X) == {"bfloat16"}
    np.testing.assert_allclose(model(X), base(X), atol=0.05)
    wrt = nnx.DiffState(0, nnx.LoRAParam)
    tx = amp.loss_scaling(optax.sgd(0.1))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)
    loss = lambda m, x: jnp.mean(m(x) ** 2)  # noqa: E731
    before = values(nnx.state(model, nnx.LoRAParam))
    kernel = model.layers[0].base_module.kernel[...]
    _, grads = amp.value_and_grad(loss, optimizer, argnums=wrt)(model, X)
    optimizer.update(model, grads)
    after = values(nnx.state(model, nnx.LoRAParam))
    assert any((new != old).any() for new, old in zip(after, before, strict=True))
    np.testing.assert_array_equal(model.layers[0].base_module.kernel[...], kernel)


def test_keep_fp32_sees_the_types_and_the_users_paths():
    seen = {}

    def keep(path, kind):
        seen[path] = kind
        return path.startswith("last")

    model = initialize(Net(nnx.Rngs(0)), "O2", keep_fp32=keep)
    model(X)
    assert seen["first/kernel"] is nnx.Linear
    assert "first/kernel/value" not in seen
    assert "norm/scale" not in seen  # batch norms are kept already
    rows = [row.dtype for row in amp.explain(model, X).operations if row.op == "dot_general"]
    assert rows == ["bfloat16", "float32"]


def test_roles_are_the_users():
    class Memory(nnx.Variable):
        """What the last call computed."""

    class Recurrent(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(8, 8, rngs=rngs)
            self.memory = Memory(jnp.zeros((32, 8)))

        def __call__(self, x):
            self.memory[...] = jnp.tanh(self.linear(x + self.memory[...])).astype(
                self.memory[...].dtype
            )
            return self.memory[...]

    for roles, dtypes in ((None, {"float32"}), ({Memory: "activation"}, {"bfloat16"})):
        model = initialize(Recurrent(nnx.Rngs(0)), "O2", roles=roles)
        found = {row.dtype for row in amp.explain(model, X).operations if row.op == "add"}
        assert dtypes <= found
        model(X)
        assert model.memory[...].dtype == jnp.float32
        assert jnp.abs(model.memory[...]).max() > 0.1
    assert "Memory: activation" in str(model.policy)


def test_at_O1_a_parameter_of_the_users_does_not_vote():
    """A float32 bias leaves a half product half; data of float32 does not."""

    class Shift(nnx.Variable):
        """Trained, and no nnx.Param."""

    class Shifted(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(8, 4, use_bias=False, rngs=rngs)
            self.shift = Shift(jnp.ones((1, 4)))

        def __call__(self, x):
            return self.linear(x) + self.shift[...]

    for roles, dtype in ((None, "float32"), ({Shift: "parameter"}, "bfloat16")):
        model = initialize(Shifted(nnx.Rngs(0)), "O1", roles=roles)
        rows = {row.op: row.dtype for row in amp.explain(model, X).operations}
        assert rows["add"] == dtype


def test_an_equal_call_of_a_module_compiles_nothing(count_compilations):
    model = initialize(Net(nnx.Rngs(0)), "O2")
    model(X)
    with count_compilations() as compiled:
        model(X)
        initialize(Net(nnx.Rngs(1)), "O2")(X)
    assert "apply" not in compiled
    assert "__call__" not in compiled


class Base(nnx.Module):
    """What users write, and a class beside theirs could break."""

    def __init__(self):
        self.linear = nnx.Linear(8, 4, rngs=nnx.Rngs(0))

    def policy(self, x):
        return self.linear(x)

    def _apply(self, x):
        return self.policy(x)

    def __call__(self, x):
        if x.ndim == 2:
            return jnp.stack([self(row) for row in x])
        return self._apply(x) * (1 if type(self) is Base else 2)


class Derived(Base):
    def __call__(self, x):
        return super(type(self), self).__call__(x)


class Batched(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, x):
        return jax.vmap(self)(x) if x.ndim == 2 else self.linear(x)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "make", [Base, Derived, lambda: Batched(eqx.nn.Linear(8, 4, key=jax.random.key(0)))]
)
def test_inside_its_call_a_module_is_what_it_was(make, level):
    """It may call itself, ask for its type, and have methods of any name."""
    given = make()
    model = initialize(given, level)
    cls = type(model)
    expected, tolerance = given(X), 1e-6 if level == "O0" else 0.05
    np.testing.assert_allclose(model(X), expected, atol=tolerance)
    assert type(model) is cls
    if isinstance(given, nnx.Module):
        np.testing.assert_allclose(model.policy(X), given.policy(X), atol=tolerance)
    copied = pickle.loads(pickle.dumps(model))
    assert type(copied) is cls
    np.testing.assert_array_equal(copied(X), model(X))


class Parent(nnx.Module):
    """A module that its child refers to."""

    def __init__(self):
        self.linear = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
        self.linear.parent = self

    def __call__(self, x):
        return self.norm(self.linear.parent.linear(x))


class NoTree(nnx.Module, pytree=False):
    """A module of a list, which only those may hold that are no pytrees."""

    def __init__(self):
        self.layers = [nnx.Linear(8, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0))]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("cls", [Parent, NoTree])
def test_what_is_a_graph_and_no_tree(cls, level):
    given, plain = cls(), cls()
    model = initialize(given, level)
    for _ in range(2):
        np.testing.assert_allclose(model(X), plain(X), atol=1e-6 if level == "O0" else 0.05)
    for new, old in zip(values(nnx.state(model)), values(nnx.state(plain)), strict=True):
        np.testing.assert_allclose(new, old, atol=5e-3)
    if cls is Parent:
        assert model.linear.parent is model


@pytest.mark.parametrize("level", LEVELS)
def test_a_call_traces_once(level):
    """At O0 it runs once; at the others a second one traces nothing."""
    calls = []

    class Counted(Net):
        def __call__(self, x):
            calls.append(1)
            return super().__call__(x)

    model = initialize(Counted(nnx.Rngs(0)), level)
    for _ in range(3):
        model(X)
    assert len(calls) <= (3 if level == "O0" else 2)


def test_at_O0_what_is_no_array_is_returned():
    class Named(nnx.Module):
        def __call__(self, x):
            return {"y": x, "name": "y"}

    assert initialize(Named(), "O0")(X)["name"] == "y"


# Equinox.


@pytest.mark.parametrize("level", LEVELS)
def test_an_equinox_module_comes_back_as_one(level):
    given = Small(jax.random.key(0))
    model = initialize(given, level)
    assert isinstance(model, Small)
    assert model.policy.opt_level == level
    assert model.mlp.activation is given.mlp.activation
    assert (model.scale, model.drop.p, model.drop.inference) == (0.5, 0.5, True)
    stored = {str(x.dtype) for x in jax.tree.leaves(eqx.filter(model, eqx.is_array))}
    assert stored == {"bfloat16" if level == "O3" else "float32"}
    tolerance = 1e-6 if level == "O0" else 0.02
    np.testing.assert_allclose(jax.vmap(model)(X), jax.vmap(given)(X), atol=tolerance)
    moved = eqx.tree_at(lambda m: m.mlp.layers[0].bias, model, model.mlp.layers[0].bias + 1)
    assert type(moved) is type(model)
    assert (eqx.filter_jit(lambda m: jax.vmap(m)(X))(moved) != jax.vmap(model)(X)).any()


@pytest.mark.parametrize("level", LEVELS)
def test_equinox_gradients_are_of_its_floating_arrays(level):
    model, tx = initialize(Small(jax.random.key(0)), level, optax.sgd(0.1))
    trained = eqx.filter(model, eqx.is_inexact_array)
    loss = lambda m, x: jnp.mean(jax.vmap(m)(x) ** 2)  # noqa: E731
    value, grads = amp.value_and_grad(loss, tx.init(trained))(model, X)
    reference = eqx.filter_grad(loss)(Small(jax.random.key(0)), X)
    assert jax.tree.structure(grads.grads) == jax.tree.structure(trained)
    assert value.dtype == jnp.float32
    for new, old in zip(jax.tree.leaves(grads.grads), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-6 if level == "O0" else 2e-3)


@pytest.mark.parametrize("level", LEVELS)
def test_a_changed_module_that_is_returned_is_at_the_level(level):
    """As Equinox's modules carry what they count."""

    class Counter(eqx.Module):
        linear: eqx.nn.Linear
        count: jax.Array

        def __call__(self, x):
            return self.linear(x), eqx.tree_at(lambda m: m.count, self, self.count + 1)

    given = Counter(eqx.nn.Linear(8, 4, key=jax.random.key(0)), jnp.array(0))
    model = initialize(given, level)
    _, moved = model(X[0])
    assert type(moved) is type(model)
    assert moved(X[0])[1].count == 2


# Errors.


def test_an_optimizer_of_a_subclass_is_refused():
    """What its own update does would be lost."""

    class Mine(nnx.Optimizer):
        pass

    given = Net(nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"not Mine: write model, tx = amp\.initialize\(model"):
        initialize(given, "O2", Mine(given, optax.sgd(0.1), wrt=nnx.Param))


def test_a_module_that_holds_one_at_a_level_is_refused():
    inner = initialize(Net(nnx.Rngs(0)), "O2")
    with pytest.raises(ValueError, match="Sequential holds Net, which was initialized before"):
        initialize(nnx.Sequential(inner), "O2")
    linear = initialize(eqx.nn.Linear(8, 4, key=jax.random.key(0)), "O2")
    with pytest.raises(ValueError, match="Sequential holds Linear, which was initialized before"):
        initialize(eqx.nn.Sequential([linear]), "O2")


def test_a_module_is_initialized_once():
    model = initialize(Net(nnx.Rngs(0)), "O2")
    with pytest.raises(ValueError, match="the model Net was initialized twice"):
        initialize(model, "O1")


def test_a_module_without_a_call_is_refused():
    class Encoder(nnx.Module):
        def encode(self, x):
            return x

    with pytest.raises(TypeError, match=r"the model Encoder has no __call__.*lambda model, x"):
        initialize(Encoder(), "O2")


def test_half_parameters_are_named():
    given = Net(nnx.Rngs(0))
    given.first.kernel.set_value(given.first.kernel[...].astype(jnp.bfloat16))
    with pytest.raises(
        ValueError, match=r"half already are: first/kernel \(bfloat16\)\. Give them"
    ):
        initialize(given, "O2")


def test_disabled_it_is_the_module_itself():
    given = Net(nnx.Rngs(0))
    assert initialize(given, "O2", enabled=False) is given


@pytest.mark.parametrize("level", HALF_LEVELS)
@pytest.mark.parametrize("train", [True, False])
def test_a_batch_norm_may_stand_in_a_loop_of_nnx(level, train):
    """Its float32 statistics make no float32 carry of a half one."""

    class Stack(nnx.Module):
        def __init__(self, rngs):
            make = nnx.vmap(lambda key: Block(nnx.Rngs(key)))
            self.blocks = make(jax.random.split(rngs.params(), 3))

        def __call__(self, x):
            forward = nnx.scan(lambda x, b: b(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return forward(x, self.blocks)

    plain, model = Stack(nnx.Rngs(0)), initialize(Stack(nnx.Rngs(0)), level)
    if not train:
        plain.eval()
        model.eval()
    for _ in range(2):
        np.testing.assert_allclose(model(X), plain(X), atol=0.05)
    assert type(model.blocks.norm) is nnx.BatchNorm
    assert model.blocks.norm.var[...].dtype == jnp.float32
    np.testing.assert_allclose(model.blocks.norm.var[...], plain.blocks.norm.var[...], atol=2e-3)
    assert products(model, X) == {"bfloat16"}
