"""What arguments of other systems are, of the functions that start, draw, scale and check."""

from collections.abc import Mapping

from jinit._known_entries import As, Instead

__all__ = ["CALLS"]

_WORKERS = Instead("for data-loading workers there is seed_workers(seed)")
_OPTIONS = Instead(
    "bind the model's own options to apply_fn: lambda params, x: model.apply(params, x, train=True)"
)
_DRAWN = {
    "seed": Instead("write key=jax.random.key(seed)"),
    "rng": Instead("write key=jax.random.key(seed)"),
    "batchsz": Instead("write batch_size="),
}
_MEASURED = {
    **_DRAWN,
    "model": Instead("give it first; a linen module after its variables"),
    "model_fn": Instead("give params and apply_fn, for Flax the variables and model.apply"),
    "variables": Instead("write params="),
    "inputs": Instead("write dummy_input="),
    "x": Instead("write dummy_input="),
    "loss": Instead("write dummy_loss="),
    "loss_fn": Instead("write dummy_loss="),
    "train": _OPTIONS,
    "training": _OPTIONS,
    "deterministic": _OPTIONS,
    "mutable": Instead(
        "bind it to apply_fn, which then returns the state beside the output, and write "
        "has_aux=True"
    ),
    "n_samples": Instead("write samples="),
}
_NO_RATE = Instead("give an optimizer with its rate, optimizer=optax.adam(1e-3)")
_TX = {"tx": Instead("write optimizer="), "opt": Instead("write optimizer=")}
_NORM_EPSILON = Instead("write norm_epsilon=")
_DEFAULTS = {
    "momentum": Instead(
        "write batchnorm_momentum=, the decay of the running statistics: torch's momentum=0.1 is "
        "a decay of 0.9"
    ),
    "bn_momentum": Instead("write batchnorm_momentum=, the decay of the running statistics"),
    "epsilon": _NORM_EPSILON,
    "eps": _NORM_EPSILON,
    "batchnorm_momentum_override": Instead("write batchnorm_momentum=, 1 minus this"),
    "norm_layer_epsilon_override": _NORM_EPSILON,
}
_PLATFORM = Instead("write platform='cpu', 'gpu' or 'tpu'")

CALLS: Mapping[str, Mapping[str, str | As | Instead]] = {
    "seed_all": {"workers": _WORKERS, "verbose": Instead("it prints nothing")},
    "startup": {
        "random_seed": Instead("write seed="),
        "num_threads": Instead("write threads="),
        "n_threads": Instead("write threads="),
        "platforms": _PLATFORM,
        "platform_name": _PLATFORM,
        "device": _PLATFORM,
        "backend": _PLATFORM,
        "x64": Instead("write enable_x64="),
        "nans": Instead("write debug_nans="),
        "precision": Instead("write matmul_precision='highest', 'high' or 'default'"),
        "default_matmul_precision": Instead("write matmul_precision="),
        "tf32": Instead("write allow_tf32="),
        "start_method": Instead(
            "write forkserver_instead_of_fork=, or name one in the variable JINIT_START_METHOD"
        ),
        "mem_fraction": Instead("write memory_fraction="),
        "preallocate": Instead("write memory='preallocate', or memory='grow' for none"),
        "flags": Instead("write xla_flags="),
        "num_cpu_devices": Instead("write cpu_devices="),
        "cache_dir": Instead("write compilation_cache=, True or a folder"),
        "compilation_cache_dir": Instead("write compilation_cache=, True or a folder"),
        "recodex": Instead("jinit has no mode for it: set what it asks for"),
        "workers": _WORKERS,
        "verbose": Instead("it prints nothing: print(jinit.startup_report())"),
    },
    "empirical_init": {
        **_MEASURED,
        "optimizer": Instead("it measures no updates: calibrate does, with optimizer="),
        "mode": Instead("calibrate has modes, with mode='explicit'"),
    },
    "calibrate": {
        **_MEASURED,
        **_TX,
        "learning_rate": Instead(
            "the multipliers are measured at a rate of 1: the rate stands behind them, in "
            "optax.chain(optax.scale_by_adam(), result.transform(), optax.scale(-rate))"
        ),
        "lr": Instead("the multipliers are measured at a rate of 1: see result.transform()"),
    },
    "coord_check": {
        **_DRAWN,
        **_TX,
        "models": Instead("give make_model, a function of width that returns (params, apply_fn)"),
        "dataloader": Instead("give dummy_input, a batch or a function of a key that draws one"),
        "loss_fn": Instead("write dummy_loss="),
        "lr": _NO_RATE,
        "learning_rate": _NO_RATE,
        "nsteps": Instead("write steps="),
        "nseeds": Instead("write seeds="),
    },
    "keras_defaults": _DEFAULTS,
    "torch_defaults": _DEFAULTS,
    "global_keras_initializers": {
        "batchnorm_momentum": Instead(
            "write batchnorm_momentum_override=, 1 minus this: the weight of a new batch"
        ),
        "norm_epsilon": Instead("write norm_layer_epsilon_override="),
    },
}
"""What the arguments are, by the function of jinit."""
