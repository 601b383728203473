"""What users of other systems type, and what it is in jinit: a table, read by ``jinit._known``.

A name that means the same here works, though no list of names shows it; any other raises an error
that says what to write. So do the arguments of functions, given by name or by position.
"""

from collections.abc import Mapping
from typing import Any

from jinit._known_calls import CALLS
from jinit._known_entries import As, Instead, Same

__all__ = [
    "ARGUMENTS",
    "CONTEXTS",
    "EVERY_INITIALIZER",
    "NAMES",
    "NO_ARGUMENTS",
    "POSITIONS",
    "VALUES",
    "WITHOUT",
    "As",
    "Instead",
    "Same",
]


_RELATIVE = {"relative": True}
_ABSOLUTE = ("low", "high", "a", "b")
_CUT = {"truncated": True}
_STD = (("stddev", "std"),)
_ENDS = (("minval", "low"), ("maxval", "high"))
_TORCH = """
    constant dirac eye glorot_normal glorot_uniform he_normal he_uniform identity kaiming_normal
    kaiming_uniform normal ones orthogonal sparse uniform xavier_normal xavier_uniform zeros
""".split()
_SEEDED = {"Keras": ("seed",)}
_NORMAL = {"Keras": ("mean", "stddev", "seed"), "Haiku": ("stddev", "mean")}
_TRUNCATED = {**_NORMAL, "Haiku": ("stddev", "mean", "lower", "upper")}
_UNIFORM = {"Keras": ("minval", "maxval", "seed"), "Haiku": ("minval", "maxval")}
_ORTHOGONAL = {"Keras": ("gain", "seed"), "Haiku": ("scale", "axis")}
_VARIANCE = {
    "Keras": ("scale", "mode", "distribution", "seed"),
    "Haiku": ("scale", "mode", "distribution", "fan_in_axes"),
}
_TIMM = {"timm": ("mean", "std", "a", "b")}
_KERAS_NORMAL = (
    "write distribution='truncated_normal' for Keras's 'normal', which is cut at two standard "
    "deviations, or variance_scaling(distribution='normal') for the plain one"
)
_HOMES = {
    "amp": """
        autocast explain float_function half_function initialize load_state_dict loss_scaling
        master_weights promote_function scale_loss state_dict stochastic_rounding unscale
        value_and_grad
    """.split(),
    "defaults": ["register"],
    "initializers": """
        calculate_gain constant dirac he_normal he_uniform kaiming_normal kaiming_uniform
        lecun_normal normal orthogonal reinit truncated_normal uniform variance_scaling
        xavier_normal xavier_uniform
    """.split(),
}
_CONFIG = Instead("initializers are frozen dataclasses: print, compare or pickle them as they are")
_DYNAMIC = Instead('write amp.loss_scaling(tx, "dynamic"), which wraps the optax optimizer')
_OPTIMIZER = Instead(
    "jinit scales losses in optax's transformations: tx = amp.loss_scaling(tx), then "
    "amp.scale_loss(loss, opt_state) in the loss function"
)
_REGIONS = (
    "decorate it, fn = amp.{0}_function(fn), or name primitives, ops=amp.OPS.extend({1}=[...])"
)

NAMES: Mapping[str, Mapping[str, Same | Instead]] = {
    "jinit.initializers": {
        # torch, Flint, timm
        **{f"{name}_": Same(name) for name in _TORCH},
        "trunc_normal": Same("truncated_normal"),
        "trunc_normal_": Same("truncated_normal"),
        "truncated_normal_": Same("truncated_normal"),
        "trunc_normal_tf_": Same("truncated_normal", _RELATIVE, positions=_TIMM),
        "variance_scaling_": Same("variance_scaling"),
        "lecun_normal_": Instead(
            "write lecun_normal(truncated=True) for timm's, which is cut at two standard "
            "deviations, or lecun_normal() for the plain one"
        ),
        # Keras, Haiku
        "Constant": Same("constant"),
        "GlorotNormal": Same("xavier_normal", _CUT, positions=_SEEDED),
        "GlorotUniform": Same("xavier_uniform", positions=_SEEDED),
        "HeNormal": Same("kaiming_normal", _CUT, positions=_SEEDED),
        "HeUniform": Same("kaiming_uniform", positions=_SEEDED),
        "Identity": Same("identity"),
        "IdentityInitializer": Same("identity"),
        "LecunNormal": Same("lecun_normal", _CUT, positions=_SEEDED),
        "LecunUniform": Same("lecun_uniform", positions=_SEEDED),
        "Ones": Same("ones"),
        "Orthogonal": Same("orthogonal", positions=_ORTHOGONAL),
        "OrthogonalInitializer": Same("orthogonal", positions=_ORTHOGONAL),
        "RandomNormal": Same("normal", needs=_STD, positions=_NORMAL),
        "RandomUniform": Same("uniform", needs=_ENDS, positions=_UNIFORM),
        "TruncatedNormal": Same("truncated_normal", _RELATIVE, needs=_STD, positions=_TRUNCATED),
        "VarianceScaling": Same(
            "variance_scaling",
            differs={("distribution", "normal"): _KERAS_NORMAL},
            positions=_VARIANCE,
        ),
        "Zeros": Same("zeros"),
        "random_normal": Same("normal", needs=_STD, positions=_NORMAL),
        "random_uniform": Same("uniform", needs=_ENDS, positions=_UNIFORM),
        "UniformScaling": Instead(
            "write variance_scaling(s**2, 'fan_in', 'uniform') for Haiku's UniformScaling(s)"
        ),
        "STFT": Instead("jinit has no Fourier kernels: pass an array with constant(array)"),
        "STFTInitializer": Instead(
            "jinit has no Fourier kernels: pass an array with constant(array)"
        ),
        "stft": Instead("jinit has no Fourier kernels: pass an array with constant(array)"),
        "deserialize": _CONFIG,
        "serialize": _CONFIG,
        "get": Instead("there are no initializers by string: write the function, e.g. he_normal()"),
        # JAX, Flax
        "Initializer": Instead("any function (key, shape, dtype) is an initializer"),
        "ones_init": Same("ones"),
        "zeros_init": Same("zeros"),
    },
    "jinit.amp": {
        # apex
        "master_params": Instead(
            "the parameters that policy.cast_to_param returns are the masters, in float32; with "
            'master_weights="optimizer" they are optax.tree.get(opt_state, "master_params")'
        ),
        "register_float_function": Instead(_REGIONS.format("float", "float32")),
        "register_half_function": Instead(_REGIONS.format("half", "half")),
        "register_promote_function": Instead(_REGIONS.format("promote", "promote")),
        "init": Instead("write amp.autocast(fn), or amp.initialize(fn, tx) with an optimizer"),
        "AmpOptimizer": _OPTIMIZER,
        "LossScaler": _DYNAMIC,
        # torch, Lightning, Keras, jmp
        "GradScaler": _OPTIMIZER,
        "LossScaleOptimizer": _DYNAMIC,
        "DynamicLossScale": _DYNAMIC,
        "StaticLossScale": Instead("write amp.loss_scaling(tx, 128.0), which wraps the optimizer"),
        "NoOpLossScale": Instead("leave the optimizer as it is, or amp.loss_scaling(tx, 1.0)"),
        "get_policy": Instead('write fn.policy of what amp.initialize(fn, opt_level="O2") returns'),
        "custom_fwd": Instead("jax.custom_vjp needs none: autocast enters its rules as well"),
        "custom_bwd": Instead("jax.custom_vjp needs none: autocast enters its rules as well"),
        "is_autocast_available": Instead("autocast is there on every backend"),
        "autocast_mode": Instead("write amp.autocast(fn): it wraps a function and is no context"),
    },
    "jinit": {
        # Lightning, transformers, torch
        "seed_everything": Same("seed_all"),
        "set_seed": Same("seed_all"),
        "manual_seed": Same("seed_all"),
        "isolate_rng": Instead(
            "write with seed_context(seed): the generators are given back after"
        ),
        "pl_worker_init_function": Instead("write worker_init_fn=seed_workers(seed)"),
        "use_deterministic_algorithms": Instead("write configure_deterministic_mode()"),
        **{
            name: Instead(f"it is jinit.{home}.{name}")
            for home, names in _HOMES.items()
            for name in names
        },
    },
}
"""What the names of other systems are, by the module of jinit that a user looks in."""
_DETERMINISTIC = {"configure_deterministic_mode": Instead("it is at the top of jinit")}
NAMES = {**NAMES, "jinit.reproducibility": {**NAMES["jinit"], **_DETERMINISTIC}}

EVERY_INITIALIZER: Mapping[str, str | As | Instead] = {
    "seed": Instead("an initializer draws with the key it is called with: init(key, shape, dtype)"),
    "generator": Instead("it draws with the key it is called with: init(key, shape, dtype)"),
    "tensor": Instead("it fills no array in place: write array = init(key, shape, dtype)"),
    "shape": Instead("give it when it draws: init(key, shape, dtype)"),
    "name": Instead("initializers have no names"),
}
"""What arguments of any initializer are."""

_BOUNDS = {"a": "low", "b": "high"}
_KAIMING = {"a": "negative_slope"}

ARGUMENTS: Mapping[str, Mapping[str, str | As | Instead]] = {
    "constant": {"val": "value", "constant": "value", "fill_value": "value"},
    "normal": {"stddev": "std"},
    "uniform": {
        **_BOUNDS,
        "minval": "low",
        "maxval": "high",
        "scale": As("high", {"low": 0.0}, unlike=("a", "low", "minval")),
    },
    "truncated_normal": {
        **_BOUNDS,
        "stddev": As("std", _RELATIVE, unlike=_ABSOLUTE),
        "lower": As("low", _RELATIVE, unlike=_ABSOLUTE),
        "upper": As("high", _RELATIVE, unlike=_ABSOLUTE),
    },
    "kaiming_normal": _KAIMING,
    "kaiming_uniform": _KAIMING,
    "orthogonal": {"scale": "gain", "column_axis": "out_axis", "axis": "out_axis"},
    # the column_axis is that of a square matrix here, which is distributed as its transpose
    "delta_orthogonal": {"scale": "gain", "column_axis": As("")},
    "sparse": {"stddev": "std"},
    "variance_scaling": {
        "fan_in_axes": Instead("name the axes: in_axis, out_axis and batch_axis"),
    },
    "calculate_gain": {"a": "param", "negative_slope": "param", "alpha": "param"},
    "autocast": {
        "dtype": "half_dtype",
        "device_type": Instead("it follows the function's arrays, on any device: leave it out"),
        "enabled": Instead("leave the function as it is where autocast is not wanted"),
        "cache_enabled": Instead("there is no cache of casts: leave it out"),
    },
    "initialize": {
        "model": "models",
        "apply_fn": "models",
        "optimizer": "optimizers",
        "tx": "optimizers",
        "level": "opt_level",
        "dtype": "half_dtype",
        "precision": Instead("write opt_level='O1' and half_dtype='bf16' or 'fp16'"),
    },
    "loss_scaling": {
        "optimizer": "inner",
        "tx": "inner",
        "scale_window": "growth_interval",
        "dynamic_growth_steps": "growth_interval",
        "initial_scale": "init_scale",
        "scale_factor": Instead("write growth_factor=scale_factor, backoff_factor=1/scale_factor"),
        "enabled": Instead("leave the optimizer as it is, or write loss_scale=1.0"),
    },
    "value_and_grad": {
        "fun": "loss_fn",
        "state": "opt_state",
        "optimizer": Instead("give its state, opt_state = tx.init(params)"),
        "allow_int": Instead("differentiate by the floating arguments alone"),
    },
    "unscale": {
        "state": "opt_state",
        "optimizer": Instead("give its state, opt_state = tx.init(params)"),
    },
    **CALLS,
    "scale_loss": {
        "optimizers": Instead("give the state, opt_state = tx.init(params)"),
        "model": Instead("leave it out: nothing is patched"),
        "delay_unscale": Instead("leave it out: amp.unscale does it when it is called"),
        "delay_overflow_check": Instead("leave it out: the update does it"),
    },
}
"""What the arguments of other systems are, by the function of jinit."""

_JAX_FANS = ("in_axis", "out_axis", "batch_axis", "dtype")
_SEED = ("seed",)
_XAVIER = {"torch": ("gain",), "JAX": _JAX_FANS}
_KAIMING_POSITIONS = {"torch": ("a", "mode", "nonlinearity"), "JAX": _JAX_FANS}
_LECUN = {"JAX": _JAX_FANS, "Keras": _SEED}
_SCALING = ("scale", "mode", "distribution")

POSITIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "constant": {"torch": ("val",), "Keras": ("value",), "JAX": ("value", "dtype")},
    "normal": {"torch": ("mean", "std"), "JAX": ("stddev", "dtype")},
    "uniform": {"torch": ("a", "b"), "JAX": ("scale", "dtype")},
    "truncated_normal": {
        "torch": ("mean", "std", "a", "b"),
        "JAX": ("stddev", "dtype", "lower", "upper"),
    },
    "xavier_normal": _XAVIER,
    "xavier_uniform": _XAVIER,
    "kaiming_normal": _KAIMING_POSITIONS,
    "kaiming_uniform": _KAIMING_POSITIONS,
    "lecun_normal": _LECUN,
    "lecun_uniform": _LECUN,
    "variance_scaling": {"JAX": _SCALING + _JAX_FANS, "Keras": _SCALING + _SEED},
    "orthogonal": {
        "torch": ("gain",),
        "JAX": ("scale", "column_axis", "dtype"),
        "Keras": ("gain", "seed"),
    },
    "delta_orthogonal": {"JAX": ("scale", "column_axis", "dtype")},
    "eye": {"Keras": ("gain",)},
    "dirac": {"torch": ("groups",)},
    "sparse": {"torch": ("sparsity", "std")},
}
"""What arguments by position are in the systems that have a function of the name."""

VALUES: Mapping[tuple[str, str], Mapping[Any, Any]] = {
    ("variance_scaling", "distribution"): {"untruncated_normal": "normal"},
}
"""What values of arguments are called here."""

_NO_CONTEXT = "autocast wraps a function and is no context: write fn = amp.autocast(fn)"
_NEEDS_STATE = "the scales are in the optimizer's state, there is no global one: write "

CONTEXTS: Mapping[str, str] = {
    "scale_loss": (
        "write loss = amp.scale_loss(loss, opt_state) in the function that jax.grad "
        "differentiates, and hand the gradients to tx.update(grads, opt_state, params)"
    ),
}
"""What to write where what a function returns is entered by ``with``."""

NO_ARGUMENTS: Mapping[str, str] = {
    "disable_casts": "write with amp.disable_casts(): or @amp.disable_casts(), with parentheses",
}
"""What to write where a function that takes no arguments is given one."""

WITHOUT: Mapping[tuple[str, str], str] = {
    ("autocast", "fn"): _NO_CONTEXT,
    ("state_dict", "opt_state"): f"{_NEEDS_STATE}amp.state_dict(opt_state)",
    (
        "load_state_dict",
        "state",
    ): f"{_NEEDS_STATE}opt_state = amp.load_state_dict(opt_state, state)",
    ("scale_loss", "opt_state"): f"{_NEEDS_STATE}amp.scale_loss(loss, opt_state)",
    ("value_and_grad", "opt_state"): f"{_NEEDS_STATE}amp.value_and_grad(loss_fn, opt_state)",
}
"""What to write where an argument is missing that other systems do without."""
