"""The table of other systems' names, row by row, and lists of what those systems export."""

import importlib
import inspect
import os
import re
import types

os.environ["KERAS_BACKEND"] = "jax"

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx

import jinit
from jinit import amp, initializers
from jinit._known_names import (
    ARGUMENTS,
    CONTEXTS,
    EVERY_INITIALIZER,
    NAMES,
    POSITIONS,
    WITHOUT,
    As,
    Instead,
    Same,
)

KEY = jax.random.key(0)
SGD = optax.sgd(0.1)
STATE = amp.loss_scaling(SGD, 8.0).init(jnp.ones(2))
ROWS = [(module, name) for module, names in NAMES.items() for name in names]
ARGUMENT_ROWS = [(function, name) for function, names in ARGUMENTS.items() for name in names]
# of which the first argument that a factory needs has a value here, and every known argument
VALUES = {
    "value": 2.0,
    "sparsity": 0.5,
    "init": initializers.zeros(),
    "scale": 0.5,
    "column_axis": 0,
    "axis": 0,
    "nonlinearity": "leaky_relu",
    "dtype": jnp.float16,
    "model": jnp.cos,
    "apply_fn": jnp.cos,
    "optimizer": SGD,
    "tx": SGD,
    "level": "O2",
    "scale_window": 7,
    "dynamic_growth_steps": 7,
    "fun": jnp.max,
    "state": STATE,
}


def function_named(name):
    homes = (initializers, amp, jinit)
    return next(getattr(home, name) for home in homes if name in home.__all__)


def needed(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: VALUES[p.name] for p in parameters if p.default is p.empty}


@pytest.mark.parametrize(("module", "name"), ROWS)
def test_a_known_name_works_or_says_what_to_write(module, name):
    home, entry = importlib.import_module(module), NAMES[module][name]
    assert name not in home.__all__
    assert name not in dir(home)
    if isinstance(entry, Instead):
        text = f"module {module!r} has no attribute {name!r}: {entry.text}"
        with pytest.raises(AttributeError, match=f"^{re.escape(text)}$"):
            getattr(home, name)
        with pytest.raises(ImportError, match=f"^{re.escape(text)}$"):
            exec(f"from {module} import {name}")
        assert not hasattr(home, name)
    else:
        assert entry.native in home.__all__
        assert getattr(home, name) is getattr(home, name)


@pytest.mark.cases
@pytest.mark.parametrize(
    "name", [n for n, e in NAMES["jinit.initializers"].items() if e[0] in initializers.__all__]
)
def test_a_known_initializer_is_the_native_one(name):
    entry = NAMES["jinit.initializers"][name]
    native = getattr(initializers, entry.native)
    wanted = {names[-1]: 0.25 for names in entry.needs} | needed(native)
    known = getattr(initializers, name)
    assert known(**wanted) == native(**{**entry.given, **wanted})
    foreign = {names[0]: 0.25 for names in entry.needs} | needed(native)
    assert known(**foreign) == known(**wanted)
    np.testing.assert_array_equal(
        known(**wanted)(KEY, (3, 4, 5) if entry.native == "dirac" else (4, 5)),
        native(**{**entry.given, **wanted})(KEY, (3, 4, 5) if entry.native == "dirac" else (4, 5)),
    )
    for names in entry.needs:
        given = {key: value for key, value in wanted.items() if key not in names}
        with pytest.raises(TypeError, match=f"^{name} needs {names[0]}=, whose default differs"):
            known(**given)
    for (argument, value), text in entry.differs.items():
        with pytest.raises(ValueError, match=re.escape(f"{name}({argument}={value!r}) differs")):
            known(**{argument: value})
        assert text


@pytest.mark.parametrize(("function", "name"), ARGUMENT_ROWS)
def test_a_known_argument_is_the_native_one_or_says_what_to_write(function, name):
    made, entry = function_named(function), ARGUMENTS[function][name]
    if isinstance(entry, Instead):
        with pytest.raises(TypeError, match=f"^{function} takes no {name}=: "):
            made(**{name: 1})
        return
    entry = entry if isinstance(entry, As) else As(entry)
    value = VALUES.get(name, 0.5)
    others = {k: v for k, v in NEEDED.get(function, {}).items() if k != entry.name}
    known = made(**others, **{name: value})
    native = {entry.name: value} if entry.name else {}
    assert result(known) == result(made(**others, **native, **entry.given))
    if entry.unlike:
        with pytest.raises(TypeError, match="which are of different systems"):
            made(**{name: value, entry.unlike[0]: 0.1})


NEEDED = {
    "sparse": {"sparsity": 0.5},
    "calculate_gain": {"nonlinearity": "leaky_relu"},
    "autocast": {"fn": jnp.sin},
    "initialize": {"models": jnp.sin, "verbosity": 0},
    "loss_scaling": {"inner": SGD},
    "value_and_grad": {"loss_fn": jnp.sum, "opt_state": STATE},
    "unscale": {"grads": jnp.ones(2), "opt_state": STATE},
}


def result(made):
    if isinstance(made, amp.Autocast):
        return made.half_dtype, made.fn
    if isinstance(made, optax.GradientTransformation):
        held = inspect.getclosurevars(made.update).nonlocals
        return held["schedule"], held["inner"]
    if type(made) is tuple:
        return tuple(map(result, made))
    if getattr(made, "__name__", "") == "value_and_unscaled_grads":
        return str(made(jnp.ones(2)))
    return str(made) if isinstance(made, amp.UnscaledGrads) else made


@pytest.mark.parametrize("name", EVERY_INITIALIZER)
def test_what_no_initializer_takes_is_explained_by_all(name):
    for factory in set(initializers.__all__) - {"calculate_gain", "reinit", "with_fan"}:
        made = getattr(initializers, factory)
        with pytest.raises(TypeError, match=f"^{made.__name__} takes no {name}=: "):
            made(**{name: 1})


def test_the_table_is_of_functions_and_arguments_that_there_are():
    for function in {*ARGUMENTS, *POSITIONS, *CONTEXTS, *(name for name, _ in WITHOUT)}:
        own = inspect.signature(function_named(function)).parameters
        for name, entry in ARGUMENTS.get(function, {}).items():
            assert name not in own
            assert isinstance(entry, Instead) or (getattr(entry, "name", entry) or name) in {
                *own,
                name,
            }
        for names in POSITIONS.get(function, {}).values():
            assert set(names) <= {*own, *ARGUMENTS.get(function, {}), *EVERY_INITIALIZER}
    assert all(name in inspect.signature(function_named(f)).parameters for f, name in WITHOUT)


TORCH = """
    calculate_gain uniform_ normal_ trunc_normal_ constant_ ones_ zeros_ eye_ dirac_ xavier_uniform_
    xavier_normal_ kaiming_uniform_ kaiming_normal_ orthogonal_ sparse_ uniform normal constant eye
    dirac xavier_uniform xavier_normal kaiming_uniform kaiming_normal orthogonal sparse
""".split()
TIMM = ["trunc_normal_", "trunc_normal_tf_", "variance_scaling_", "lecun_normal_"]
APEX = """
    initialize init scale_loss state_dict load_state_dict master_params half_function float_function
    promote_function register_half_function register_float_function register_promote_function
    disable_casts
""".split()
COMPOSER = """
    MAX_SEED configure_deterministic_mode get_random_seed get_rng_state load_rng_state seed_all
    seed_context
""".split()
MINNT = ["startup", "global_keras_initializers", "keras_defaults"]
LIGHTNING = ["seed_everything", "isolate_rng", "pl_worker_init_function"]
TORCH_AMP = ["autocast", "GradScaler", "custom_fwd", "custom_bwd", "is_autocast_available"]


def public(module):
    own = (name for name in dir(module) if name[0] != "_")
    return [name for name in own if not isinstance(getattr(module, name), types.ModuleType)]


@pytest.mark.parametrize(
    ("home", "names"),
    [
        (initializers, TORCH),
        (initializers, TIMM),
        (initializers, public(keras.initializers)),
        (initializers, public(hk.initializers)),
        (initializers, public(jax.nn.initializers)),
        (initializers, public(nn.initializers)),
        (initializers, set(public(nnx.initializers)) - {"DtypeLikeInexact"}),
        (amp, APEX),
        (amp, TORCH_AMP),
        (jinit.reproducibility, COMPOSER),
        (jinit, COMPOSER),
        (jinit, MINNT),
        (jinit, LIGHTNING),
    ],
    ids=[
        *("torch", "timm", "keras", "haiku", "jax", "linen", "nnx", "apex", "torch.amp"),
        *("composer", "composer in jinit", "minnt", "lightning"),
    ],
)
def test_what_another_system_exports_works_or_is_explained(home, names):
    for name in names:
        if not hasattr(home, name):
            with pytest.raises(AttributeError, match=f"has no attribute {name!r}: .{{10}}"):
                getattr(home, name)


@pytest.mark.parametrize(
    ("home", "name", "meant"),
    [
        (initializers, "orthognal", "orthogonal"),
        (initializers, "kaiming_norml", "kaiming_normal"),
        (amp, "initialise", "initialize"),
        (jinit, "empirical_int", "empirical_init"),
        (jinit.reproducibility, "seed_al", "seed_all"),
    ],
)
def test_a_typing_error_names_the_nearest(home, name, meant):
    text = f"module {home.__name__!r} has no attribute {name!r}; did you mean {meant!r}?"
    with pytest.raises(AttributeError, match=f"^{re.escape(text)}$"):
        getattr(home, name)
    with pytest.raises(ImportError, match=f"cannot import name {name!r}"):
        exec(f"from {home.__name__} import {name}")


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("autocast", "jinit.amp.autocast"),
        ("initialize", "jinit.amp.initialize"),
        ("reinit", "jinit.initializers.reinit"),
        ("register", "jinit.defaults.register"),
    ],
)
def test_a_name_of_a_submodule_says_where_it_is(name, full):
    with pytest.raises(AttributeError, match=f"^module 'jinit' has no .*: it is {full}$"):
        getattr(jinit, name)
    assert callable(eval(full))


def test_every_name_is_where_an_error_says():
    for entry in NAMES["jinit"].values():
        if isinstance(entry, Instead) and entry.text.startswith("it is jinit."):
            assert callable(eval(entry.text.removeprefix("it is ")))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: jinit.startup(0, x64=True), "startup takes no x64=: write enable_x64="),
        (
            lambda: jinit.startup(0, matmul_precison="high"),
            "startup takes no matmul_precison=, did you mean matmul_precision=? its arguments: ",
        ),
        (
            lambda: jinit.calibrate({}, jnp.sin, jnp.ones(2), jnp.sum, tx=SGD),
            "calibrate takes no tx=: write optimizer=",
        ),
        (
            lambda: jinit.empirical_init({}, jnp.sin, jnp.ones(2), jnp.sum, mutable=["a"]),
            "empirical_init takes no mutable=: bind it to apply_fn",
        ),
        (
            lambda: jinit.coord_check(jnp.sin, [1, 2], jnp.ones(2), jnp.sum, nsteps=3),
            "coord_check takes no nsteps=: write steps=",
        ),
        (
            lambda: jinit.torch_defaults(momentum=0.1),
            "torch_defaults takes no momentum=: write batchnorm_momentum=, the decay of the "
            "running statistics: torch's momentum=0.1 is a decay of 0.9",
        ),
        (
            lambda: jinit.defaults.register(nn.Dense, kernel_init=initializers.ones()),
            "register takes no kernel_init=, its arguments: layer, fields, system",
        ),
    ],
)
def test_arguments_of_what_starts_draws_scales_and_checks(call, text):
    with pytest.raises(TypeError, match=f"^{re.escape(text)}"):
        call()


@pytest.mark.parametrize("home", [initializers, amp, jinit, jinit.reproducibility])
def test_other_names_are_not_there(home):
    assert not hasattr(home, "nonexistent")
    with pytest.raises(AttributeError, match=r"has no attribute '__nonexistent__'$"):
        _ = home.__nonexistent__


def test_an_unknown_argument_names_the_nearest():
    with pytest.raises(
        TypeError, match=re.escape("normal takes no sdt=, did you mean std=? its a")
    ):
        initializers.normal(sdt=1)
    with pytest.raises(
        TypeError, match=r"^eye takes no zzz=, its arguments: gain, batch_axis, dtype$"
    ):
        initializers.eye(zzz=1)


@pytest.mark.cases
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (initializers.GlorotNormal(), keras.initializers.GlorotNormal(1)),
        (initializers.GlorotUniform(), keras.initializers.GlorotUniform(1)),
        (initializers.HeNormal(), keras.initializers.HeNormal(1)),
        (initializers.HeUniform(), keras.initializers.HeUniform(1)),
        (initializers.LecunNormal(), keras.initializers.LecunNormal(1)),
        (initializers.LecunUniform(), keras.initializers.LecunUniform(1)),
        (initializers.RandomNormal(stddev=0.3), keras.initializers.RandomNormal(0, 0.3, 1)),
        (
            initializers.RandomUniform(minval=-0.1, maxval=0.3),
            keras.initializers.RandomUniform(-0.1, 0.3, 1),
        ),
        (initializers.TruncatedNormal(stddev=0.3), keras.initializers.TruncatedNormal(0, 0.3, 1)),
        (
            initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
            keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal", 1),
        ),
    ],
    ids=lambda init: repr(init) if isinstance(init, initializers.normal) else "",
)
def test_a_name_of_keras_draws_what_keras_draws(ours, theirs):
    """Moments of 1e5 numbers within six standard errors, and the ends."""
    ours, theirs = (np.asarray(x, float) for x in (ours(KEY, (250, 400)), theirs((250, 400))))
    assert abs(ours.std() / theirs.std() - 1) < 6 * 2**0.5 / (2 * 1e5) ** 0.5
    assert abs(ours.mean() - theirs.mean()) < 6 * 2**0.5 * theirs.std() / 1e5**0.5
    assert abs(abs(ours).max() / abs(theirs).max() - 1) < 0.2


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("TruncatedNormal", (0.0, 0.02),
         "write truncated_normal(mean=0.0, std=0.02, relative=True) as in Keras or "
         "truncated_normal(std=0.0, relative=True, mean=0.02) as in Haiku"),
        ("TruncatedNormal", (0.02,),
         "write truncated_normal(mean=0.02, relative=True, std=...) as in Keras or "
         "truncated_normal(std=0.02, relative=True) as in Haiku"),
        ("RandomNormal", (0.02,),
         "write normal(mean=0.02, std=...) as in Keras or normal(std=0.02) as in Haiku"),
        ("Orthogonal", (2.0, 0),
         "write orthogonal(gain=2.0, out_axis=0) as in Haiku; a seed, as in Keras, is the key"),
        ("GlorotUniform", (3,), "give the arguments by name, in_axis, out_axis, batch_axis, fans, "
         "gain, dtype; a seed, as in Keras, is the key it draws with"),
        ("HeNormal", (3,), "a seed, as in Keras, is the key it draws with"),
        ("RandomUniform", (-0.05, 0.05, 3), "a seed, as in Keras, is the key it draws with"),
        ("GlorotUniform", (np.ones((2, 2)),), "xavier_uniform fills no array in place"),
        ("VarianceScaling", (1.0, "fan_in", "uniform", 3), "a seed, as in Keras, is the key"),
    ],
)  # fmt: skip
def test_positions_are_read_as_in_the_systems_that_have_the_name(name, arguments, message):
    with pytest.raises(TypeError) as raised:
        getattr(initializers, name)(*arguments)
    assert message in str(raised.value)
    assert "torch" not in str(raised.value)


def test_positions_that_mean_one_thing_are_taken():
    assert initializers.RandomUniform(-0.1, 0.3) == initializers.uniform(low=-0.1, high=0.3)
    tf = initializers.trunc_normal_tf_(0.0, 0.02, -1.0, 2.0)
    assert tf == initializers.truncated_normal(
        mean=0.0, std=0.02, low=-1.0, high=2.0, relative=True
    )
    scaling = initializers.VarianceScaling(2.0, "fan_out", "uniform")
    assert scaling == initializers.variance_scaling(2.0, "fan_out", "uniform")
    with pytest.raises(TypeError, match="random_uniform needs maxval=, whose default differs"):
        initializers.random_uniform(-0.1)


def test_what_an_error_says_to_write_for_kerass_name_draws_what_keras_draws():
    with pytest.raises(TypeError) as raised:
        initializers.TruncatedNormal(1.0, 0.5)
    written = re.search(r"write (.*?) as in Keras", str(raised.value))[1]
    ours = eval(written, vars(initializers).copy())(KEY, (100_000,))
    assert written.startswith("truncated_normal(mean=1.0, std=0.5")
    assert (float(ours.min()), float(ours.max())) == pytest.approx((0, 2), abs=1e-3)


def test_haikus_names_mean_what_haiku_means():
    init = initializers.TruncatedNormal(stddev=0.5, lower=-1.0, upper=2.0)
    sample = np.asarray(init(KEY, (100_000,)))
    assert (sample.min(), sample.max()) == pytest.approx((-0.5, 1.0), abs=1e-3)
    with pytest.raises(
        AttributeError, match=re.escape("variance_scaling(s**2, 'fan_in', 'uniform')")
    ):
        _ = initializers.UniformScaling
    theirs = hk.transform(lambda: hk.initializers.UniformScaling(2.0)((250, 400), jnp.float32))
    limit = initializers.variance_scaling(4.0, "fan_in", "uniform").resolve((250, 400)).high
    assert float(abs(theirs.apply({}, KEY)).max()) == pytest.approx(limit, rel=1e-4)


NO_CONTEXT = r"^scale_loss is no context: write loss = amp.scale_loss\(loss, opt_state\) in the "


def test_apexs_with_says_what_to_write():
    with pytest.raises(TypeError, match=NO_CONTEXT):  # noqa: SIM117
        with amp.scale_loss(jnp.float32(1), STATE):
            pass

    def loss_fn(params):
        with amp.scale_loss(params.sum(), STATE) as scaled:
            return scaled

    with pytest.raises(TypeError, match=NO_CONTEXT):
        jax.jit(jax.grad(loss_fn))(jnp.ones(2))


def test_a_scaled_loss_within_another_context_is_no_error(tmp_path):
    with open(tmp_path / "log", "w"):
        assert float(amp.scale_loss(jnp.float32(1), STATE)) == 8
    assert [float(amp.scale_loss(jnp.float32(x), STATE)) for x in (1, 2)] == [8, 16]
    with jax.named_scope(str(amp.scale_loss(jnp.float32(1), STATE))):
        pass


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: amp.state_dict(), "state_dict needs opt_state: the scales are in the optimizer's"),
        (lambda: amp.load_state_dict({}), "load_state_dict needs state: the scales are in the opt"),
        (lambda: amp.scale_loss(jnp.float32(1)), "scale_loss needs opt_state: the scales are in"),
        (lambda: amp.value_and_grad(jnp.sum), "value_and_grad needs opt_state: the scales are in"),
        (lambda: amp.autocast(dtype=jnp.float16), "autocast needs fn: autocast wraps a function"),
        (lambda: amp.autocast(), "autocast needs fn: autocast wraps a function and is no context"),
    ],
)
def test_an_argument_that_other_systems_do_without(call, text):
    with pytest.raises(TypeError, match=f"^{re.escape(text)}"):
        call()


def test_torchs_dtype_of_autocast_is_the_half_dtype():
    fn = amp.autocast(lambda w, x: x @ w, dtype=jnp.float16)
    assert "f16[2,2] = dot_general" in str(jax.make_jaxpr(fn)(jnp.ones((2, 2)), jnp.ones((2, 2))))


def test_lightnings_seed_is_that_of_seed_all():
    with jinit.seed_context(0):
        jinit.seed_everything(7)
        assert jinit.reproducibility.root_seed() == 7
        drawn = np.random.random()
        jinit.seed_all(7)
        assert drawn == np.random.random()


def test_every_row_says_something():
    for names in (*NAMES.values(), *ARGUMENTS.values()):
        for entry in names.values():
            assert not isinstance(entry, Instead) or len(entry.text) > 9
    assert all(isinstance(e, Same | Instead) for names in NAMES.values() for e in names.values())
