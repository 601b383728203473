"""What a type checker says of users' files: good code passes, and a wrong word is found."""

import importlib
import inspect
import json
import re
import typing

import optax
import pytest
from flax import nnx

import jinit
from jinit import amp
from jinit.amp.initialize import Options
from tests import processes

SETUP = """
import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx
from typing import assert_type

import jinit
from jinit import amp

def f(params: jax.Array, x: jax.Array) -> jax.Array:
    return x @ params

def loss(output: jax.Array) -> jax.Array:
    return output.sum()

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)

params = x = jnp.ones((2, 2))
tx = optax.adam(0.1)
"""

GOOD = {
    "initialize": """
from jinit.amp.apply import MixedPrecisionApply as Mixed
from jinit.amp.models.haiku_model import HaikuModel
from jinit.amp.models.linen_model import LinenModel
from optax import GradientTransformationExtraArgs as Scaled

assert_type(amp.initialize(f), Mixed)
assert_type(amp.initialize(Net(), opt_level="O3"), LinenModel)
assert_type(amp.initialize(Net(), tx), tuple[LinenModel, Scaled])
assert_type(amp.initialize(Net().apply), Mixed)
linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
assert_type(amp.initialize(linear), nnx.Linear)
assert_type(amp.initialize(linear, tx, "O3"), tuple[nnx.Linear, Scaled])
stepped, optimizer = amp.initialize(linear, nnx.Optimizer(linear, tx, wrt=nnx.Param))
assert_type(stepped, nnx.Linear)
optimizer.update(stepped, amp.value_and_grad(lambda m: m(x).sum(), optimizer)(stepped)[1])
mlp = eqx.nn.MLP(2, 2, 2, 2, key=jax.random.key(0))
assert_type(amp.initialize(mlp), eqx.nn.MLP)
assert_type(amp.initialize(mlp, tx), tuple[eqx.nn.MLP, Scaled])
pair = hk.transform_with_state(lambda x: x)
assert_type(amp.initialize(pair), HaikuModel)
assert_type(amp.initialize(hk.transform(lambda x: x), tx), tuple[HaikuModel, Scaled])
assert_type(amp.initialize([pair, f]), list[Mixed])
model = amp.initialize(Net())
variables = model.init(jax.random.key(0), x)
model.apply(variables, x, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
model.bind(variables)(x)
assert_type(model.tabulate(jax.random.key(0), x), str)
assert_type(amp.initialize([f, Net().apply]), list[Mixed])
assert_type(amp.initialize((f, f)), tuple[Mixed, ...])
assert_type(amp.initialize(f, tx), tuple[Mixed, Scaled])
assert_type(amp.initialize(f, optax.chain(optax.clip(1.0), tx), "O2"), tuple[Mixed, Scaled])
assert_type(amp.initialize([f, f], tx, num_losses=2), tuple[list[Mixed], Scaled])
assert_type(amp.initialize(f, [tx, tx], loss_scale=128.0), tuple[Mixed, list[Scaled]])
assert_type(amp.initialize([f], [tx], half_dtype=jnp.float16), tuple[list[Mixed], list[Scaled]])
amp.initialize((f, f), (tx, tx), keep_batchnorm_fp32=True, verbose=True)
amp.initialize([f, f], (tx, tx), keep_fp32=lambda path, kind: "norm" in path)
amp.initialize(f, tx, master_weights="optimizer", cast_model_outputs="float32", enabled=False)
assert_type(amp.initialize(f).policy, amp.Policy)
""",
    "decorators": """
def gate(x: jax.Array, power: int = 1) -> jax.Array:
    return x**power

class Block:
    @amp.autocast
    def cast(self, x: jax.Array) -> jax.Array:
        return x

    @amp.half_function
    def half(self, x: jax.Array) -> jax.Array:
        return x

    @amp.disable_casts()
    def disabled(self, x: jax.Array) -> jax.Array:
        return x

for marked in amp.half_function(gate), amp.float_function(gate), amp.promote_function(gate):
    assert_type(marked(x, power=2), jax.Array)
assert_type(amp.autocast(gate)(x, power=2), jax.Array)
assert_type(amp.autocast(gate, half_dtype="float16", params_argnums=1)(x), jax.Array)
assert_type(Block().cast(x), jax.Array)
assert_type(Block().half(x), jax.Array)
assert_type(Block().disabled(x), jax.Array)
with amp.disable_casts():
    gate(x)
""",
    "scaling": """
state = amp.loss_scaling(tx, init_scale=8.0).init(params)
assert_type(amp.scale_loss(loss(x), state), jax.Array)
assert_type(amp.value_and_grad(loss, state)(x), tuple[jax.Array, amp.UnscaledGrads])
value, grads = amp.value_and_grad(lambda p: (p.sum(), x), state, has_aux=True)(params)
assert_type(grads + grads, amp.UnscaledGrads)
assert_type(amp.unscale(params, state), amp.UnscaledGrads)
updates, state = amp.master_weights(amp.loss_scaling(tx)).update(params, state, params)
updates, state = amp.stochastic_rounding(tx, seed=1).update(params, state, params)
amp.load_state_dict(state, amp.state_dict(state))
""",
    "modules": """
import equinox as eqx
import haiku as hk
from flax import nnx

class Nnx(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x

class Equinox(eqx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x

assert_type(jinit.calibrate(Nnx(), x, loss).params, Nnx)
assert_type(jinit.calibrate(Nnx(), lambda m, x: m(x), x, loss, step="network").params, Nnx)
assert_type(jinit.empirical_init(Nnx(), x, dummy_loss=loss), Nnx)
assert_type(jinit.empirical_init(Equinox(), x, loss, samples=2), Equinox)
assert_type(jinit.empirical_init(params, f, x, loss), jax.Array)
jinit.calibrate(Net().init(jax.random.key(0), x), Net(), x, loss)
jinit.calibrate((params, params), hk.transform_with_state(f), x, loss)
""",
    "top": """
from typing import TypeAlias

import jinit.typing as names

def draw(key: names.Key) -> names.PyTree:
    return jax.random.normal(key, (2,))

assert_type(jinit.startup(0), jax.Array)
assert_type(jinit.amp.initialize(f).policy.opt_level, jinit.typing.OptLevel)
Tuned: TypeAlias = jinit.Calibration[jax.Array]
assert_type(jinit.calibrate(params, f, x, loss, mode="fold"), Tuned)
assert_type(jinit.calibrate(params, f, x, loss, step="network"), Tuned)
with jinit.keras_defaults():
    draw(jinit.startup(0))
""",
}

BAD = {
    "words": """
amp.initialize(f, tx, opt_level="O5")  # error
amp.initialize(f, tx, "o1")  # error
amp.initialize(f, tx, master_weights="adam")  # error
amp.initialize(f, tx, half_dype="bfloat16")  # error
jinit.calibrate(params, f, x, loss, mode="folded")  # error
jinit.calibrate(params, f, x, loss, step="net")  # error
jinit.calibrate(params, x, loss, mode="folded")  # error
jinit.calibrate(params, 3, x, loss)  # error
""",
    "arguments": """
amp.half_function(f)(params)  # error
amp.autocast(f)(params, "x")  # error
amp.scale_loss("loss", None)  # error
amp.initialize(f).polcy  # error
amp.loss_scaling(tx, init_scale="large")  # error
amp.value_and_grad(loss, None)("params")  # error
""",
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """By name of a user's file, the lines with errors, and what is said of them."""
    pytest.importorskip("pyright")
    folder = tmp_path_factory.mktemp("user")
    for name, code in {**GOOD, **BAD}.items():
        (folder / f"{name}.py").write_text(SETUP + code)
    done = processes.python("-m", "pyright", "--outputjson", folder, warn="default")
    found = {name: {} for name in {**GOOD, **BAD}}
    for report in json.loads(done.stdout)["generalDiagnostics"]:
        name = report["file"].replace("\\", "/").rsplit("/", 1)[1].removesuffix(".py")
        found[name][report["range"]["start"]["line"]] = report["message"]
    return found


@pytest.mark.thorough
@pytest.mark.parametrize("name", GOOD)
def test_good_code_has_no_errors(errors, name):
    assert errors[name] == {}


@pytest.mark.thorough
@pytest.mark.parametrize("name", BAD)
def test_a_wrong_word_is_an_error_on_its_line(errors, name):
    lines = (SETUP + BAD[name]).splitlines()
    marked = {number for number, line in enumerate(lines) if line.endswith("# error")}
    assert marked
    assert set(errors[name]) == marked


@pytest.mark.thorough
def test_the_levels_are_named_in_the_error(errors):
    said = " ".join(errors["words"].values())
    assert re.search(r"'O5'.*\"OptLevel\".*Literal\['O3'\]", said, re.DOTALL)


CALIBRATE = importlib.import_module("jinit.empirical.calibrate")


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (amp.initialize, Options),
        (jinit.empirical_init, CALIBRATE.Options),
        (jinit.calibrate, CALIBRATE.CalibrateOptions),
    ],
)
def test_the_keywords_of_the_overloads_are_those_of_the_function(function, options):
    parameters = inspect.signature(function).parameters.values()
    keywords = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert all(p.default is not p.empty for p in keywords.values())
    known = {"optax": optax, "nnx": nnx, "Model": object}  # what only a type checker imports
    own = typing.get_type_hints(inspect.unwrap(function), localns=known)
    hints = typing.get_type_hints(options, localns=known)
    assert {name: own[name] for name in keywords} == hints
