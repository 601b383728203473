from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from jinit import amp
from jinit.amp import half_support
from jinit.amp.levels import resolve_half_dtype, resolve_policy

# Read from apex: cast_model_type, op-level casts, keep_batchnorm_fp32, master_weights, loss_scale.
APEX = {
    "O0": ("float32", False, None, False, 1.0),
    "O1": (None, True, None, None, "dynamic"),
    "O2": ("float16", False, True, True, "dynamic"),
    "O3": ("float16", False, False, False, 1.0),
}


def properties(policy):
    cast = policy.cast_model_type
    return (
        None if cast is None else cast.name,
        policy.patch_functions,
        policy.keep_batchnorm_fp32,
        policy.master_weights,
        policy.loss_scale,
    )


@pytest.mark.parametrize("level", APEX)
def test_levels_with_float16_are_apex(level):
    assert properties(resolve_policy(level, jnp.float16)) == APEX[level]


@pytest.mark.parametrize("level", APEX)
def test_levels_with_bfloat16_need_no_loss_scale(level):
    cast, *middle, _ = APEX[level]
    cast = "bfloat16" if cast == "float16" else cast
    assert properties(resolve_policy(level, jnp.bfloat16)) == (cast, *middle, 1.0)


@pytest.mark.parametrize(
    ("level", "given", "expected"),
    [
        ("O2", {"keep_batchnorm_fp32": "False"}, False),
        ("O2", {"keep_batchnorm_fp32": False}, False),
        ("O3", {"keep_batchnorm_fp32": "True"}, True),
        ("O2", {"master_weights": False}, False),
        ("O1", {"patch_functions": False}, False),
        ("O2", {"loss_scale": "128"}, 128.0),
        ("O2", {"loss_scale": 3}, 3.0),
        ("O3", {"loss_scale": "dynamic"}, "dynamic"),
        ("O3", {"cast_model_outputs": "bfloat16"}, jnp.dtype("bfloat16")),
        ("O1", {"cast_model_outputs": jnp.float16}, jnp.dtype("float16")),
        ("O1", {"cast_model_type": jnp.float32}, jnp.dtype("float32")),
        ("O2", {"min_loss_scale": 0.5}, 0.5),
        ("O2", {"max_loss_scale": 2.0**10}, 2.0**10),
    ],
)
def test_a_keyword_wins_and_touches_nothing_else(level, given, expected):
    (name,) = given
    policy, default = resolve_policy(level, **given), resolve_policy(level)
    assert getattr(policy, name) == expected
    assert type(getattr(policy, name)) is type(expected)
    others = set(policy.__dataclass_fields__) - {name}
    assert all(getattr(policy, other) == getattr(default, other) for other in others)


def test_an_explicit_cast_type_is_the_half_type():
    policy = resolve_policy("O2", cast_model_type="float16")
    assert (policy.half_dtype, policy.loss_scale) == (jnp.float16, "dynamic")


ERRORS = [
    (
        {"opt_level": "02"},
        "unknown opt_level '02': the levels are 'O0', 'O1', 'O2' and 'O3', with the letter O, "
        "not zero",
    ),
    ({"opt_level": 2}, "unknown opt_level 2: "),
    ({"opt_level": None}, "unknown opt_level None: "),
    (
        {"opt_level": "O1", "keep_batchnorm_fp32": True},
        "opt_level 'O1' keeps parameters float32 by itself: keep_batchnorm_fp32 must be None, "
        "not True",
    ),
    (
        {"opt_level": "O1", "master_weights": False},
        "opt_level 'O1' keeps parameters float32 by itself: master_weights must be None, not False",
    ),
    (
        {"opt_level": "O2", "master_weights": "optimiser"},
        "master_weights must be True, False, 'True', 'False', 'optimizer' or None, not 'optimiser'",
    ),
    ({"opt_level": "O1", "ops": {"half": []}}, "ops must be amp.OPS or its extension, not {'half'"),
    (
        {"opt_level": "O1", "cast_model_type": jnp.bfloat16},
        "opt_level 'O1' casts operations and leaves the parameters float32: to compute wholly in "
        "bfloat16 use opt_level 'O2' or 'O3'",
    ),
    (
        {"opt_level": "O2", "patch_functions": True},
        "patch_functions=True casts operation by operation, which only opt_level 'O1' does, "
        "not 'O2'",
    ),
    ({"opt_level": "O0", "patch_torch_functions": True}, "patch_functions=True casts operation"),
    (
        {"opt_level": "O1", "patch_functions": True, "patch_torch_functions": False},
        "patch_functions and patch_torch_functions contradict each other",
    ),
    (
        {"opt_level": "O2", "keep_batchnorm_fp32": "yes"},
        "keep_batchnorm_fp32 must be True, False, 'True', 'False' or None, not 'yes'",
    ),
    ({"opt_level": "O2", "keep_batchnorm_fp32": 1}, "keep_batchnorm_fp32 must be True, False"),
    (
        {"opt_level": "O2", "loss_scale": "huge"},
        "loss_scale must be 'dynamic' or a positive, finite number, not 'huge'",
    ),
    ({"opt_level": "O2", "loss_scale": 0}, "loss_scale must be 'dynamic' or a positive"),
    ({"opt_level": "O2", "loss_scale": "inf"}, "loss_scale must be 'dynamic' or a positive"),
    ({"opt_level": "O2", "loss_scale": True}, "loss_scale must be 'dynamic' or a positive"),
    (
        {"opt_level": "O2", "min_loss_scale": -1},
        "min_loss_scale must be a positive, finite number, not -1",
    ),
    (
        {"opt_level": "O2", "half_dtype": jnp.float32},
        "half_dtype must be 'auto', bfloat16 or float16, not <class 'jax.numpy.float32'>",
    ),
    ({"opt_level": "O2", "half_dtype": "bogus"}, "half_dtype must be 'auto', bfloat16 or float16"),
    ({"opt_level": "O2", "half_dtype": jnp.int16}, "half_dtype must be 'auto', bfloat16"),
    (
        {"opt_level": "O2", "cast_model_type": "int8"},
        "cast_model_type must be bfloat16, float16 or float32, not 'int8'",
    ),
    (
        {"opt_level": "O2", "half_dtype": "float16", "cast_model_type": "bfloat16"},
        "half_dtype float16 and cast_model_type bfloat16 contradict each other: give one of them",
    ),
]


@pytest.mark.parametrize(("keywords", "text"), ERRORS, ids=[str(keys) for keys, _ in ERRORS])
def test_errors(keywords, text, capsys):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is compared below)
        amp.initialize(lambda params, x: params * x, **keywords)
    assert str(caught.value).startswith(text)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ("7.5", "float16"),
        ("6.1", "float16"),
        ("8.0", "bfloat16"),
        ("9.0", "bfloat16"),
        ("10.0", "bfloat16"),
        ("gfx90a", "bfloat16"),
    ],
)
def test_auto_is_float16_on_gpus_older_than_ampere(capability, expected):
    devices = [SimpleNamespace(compute_capability="9.0"), SimpleNamespace()]
    devices += [SimpleNamespace(compute_capability=capability)]
    assert resolve_half_dtype("auto", devices) == jnp.dtype(expected)


def test_auto_is_bfloat16_here():
    assert resolve_half_dtype() == jnp.bfloat16


@pytest.mark.parametrize("given", ["float16", jnp.float16, jnp.dtype("float16")])
def test_half_dtype_forms(given):
    assert resolve_half_dtype(given) == jnp.float16


PARAMS = {"params": {"Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2, "float16")}},
          "batch_stats": {"mean": jnp.ones(2, "float16")}}  # fmt: skip


@pytest.mark.parametrize("level", ["O0", "O1", "O2"])
def test_half_parameters_are_refused_where_float32_ones_are_cast(level):
    text = (
        f"opt_level {level!r} takes float32 parameters and casts them itself, but half already "
        "are: Dense_0/bias (float16). Give them as they were initialized, or store them in half "
        "with 'O3' or master_weights='optimizer'"
    )
    model = amp.initialize(lambda variables, x: x, opt_level=level, verbosity=0)
    for use in (lambda: model(PARAMS, jnp.ones(2)), lambda: model.policy.cast_to_param(PARAMS)):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is compared below)
            use()
        assert str(caught.value) == text


@pytest.mark.parametrize(("level", "masters"), [("O3", None), ("O2", "optimizer"), ("O2", False)])
def test_half_parameters_are_taken_where_they_are_stored_in_half(level, masters):
    model = amp.initialize(
        lambda variables, x: x, opt_level=level, master_weights=masters, verbosity=0
    )
    assert model(PARAMS, jnp.ones(2)).dtype == jnp.float32


def test_a_half_dtype_that_the_backend_lacks_is_refused(monkeypatch, capsys):
    class Product:
        def lower(self, matrix):
            raise NotImplementedError(f"no {matrix.dtype} here")

    monkeypatch.setattr(half_support, "_product", Product())
    half_support._failure.cache_clear()
    text = (
        "the backend 'cpu' cannot compute in float16, choose another half_dtype or opt_level "
        "'O0': no float16 here"
    )
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is compared below)
        amp.initialize(lambda params, x: x, opt_level="O2", half_dtype="float16")
    half_support._failure.cache_clear()
    assert str(caught.value) == text
    assert capsys.readouterr().out == ""
    amp.initialize(lambda params, x: x, opt_level="O0", half_dtype="float16", verbosity=0)
