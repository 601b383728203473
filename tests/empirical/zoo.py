"""Models of every kind that a calibration must hold on, and what is expected of each.

A case knows its model twice: as the user writes it, and with the outputs of its sites handed out
beside its own, by Flax's capture or by hand. The second is the judge, since it knows nothing of
how jinit finds sites. The models are in ``zoo_linen`` and ``zoo_functions``.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from tests.empirical.models import random_loss

SETTINGS = [("fold", "adam"), ("explicit", "sgd"), ("explicit", "adam")]

BRIEFLY = {
    ("fold", "adam"): {
        "cnn", "cond_and_switch", "lstm", "mlp_4_relu", "moe_one_hot", "original_test_net",
        "shard_map", "transformer_scan", "zero_initialized_head",
    },
    ("explicit", "sgd"): {"lstm", "mlp_4_relu"},
    ("explicit", "adam"): {"mlp_4_relu"},
}  # fmt: skip
"""The cases that CI takes; the others are marked slow."""

THOROUGHLY = {
    ("fold", "adam"): {
        "cnn", "lstm", "moe_one_hot", "original_test_net", "shard_map", "transformer_scan",
        "zero_initialized_head",
    },
    ("explicit", "sgd"): {"lstm"},
    ("explicit", "adam"): {"mlp_4_relu"},
}  # fmt: skip
"""Of these, the cases that the quick suite leaves out."""

# why a site is left as it was
GAIN = "a gain"
BIAS = "a bias on its own"
OTHER = "not linear in the parameter"
OPAQUE = "inside an operation that is not entered"
MIXED = "not homogeneous in any of its parameters"

Outputs = dict[str, list[jax.Array]]
"""By the path of a leaf, what each of its uses produced."""


@dataclass(frozen=True)
class Case:
    """A model and what is to be said of it. Every pattern is a regular expression of whole paths.

    Attributes:
        params: Its variables.
        captured: Called like the model; returns its output and those of its sites.
        draw: Takes a key and returns the inputs.
        apply_fn: The model as a user passes it.
        scans: How many leading axes of a captured output count the iterations of scans.
        own: How many of these slice the leaf, the others sharing it. They are the first in what
            is captured; negative where they are the inner scans of the model, and so the last in
            the report.
        shared: The leaves that serve several uses or iterations.
        unseen: The leaves whose outputs are not captured.
        null: The leaves that must be listed as null.
        perhaps_null: Those that may be: what lies before a null gradient.
        not_tuned: The leaves that must be listed as left alone, and why.
        perhaps_not_tuned: Those that may be: a better analysis may tune them.
        unused: The leaves that no output depends on.
        loss: The dummy loss.
        options: Further arguments of ``calibrate``.
        keywords: What the model takes by name beside its inputs, made from a key.
    """

    params: Any
    captured: Callable[..., tuple[Any, Outputs]]
    draw: Callable[[jax.Array], Any]
    apply_fn: Callable[..., Any]
    scans: Mapping[str, int] = field(default_factory=dict)
    own: Mapping[str, int] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    null: tuple[str, ...] = ()
    perhaps_null: tuple[str, ...] = ()
    not_tuned: Mapping[str, str] = field(default_factory=dict)
    perhaps_not_tuned: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    loss: Callable[..., jax.Array] = random_loss
    options: Mapping[str, Any] = field(default_factory=dict)
    keywords: Callable[[jax.Array], Mapping[str, Any]] = lambda key: {}

    def inputs(self, key: jax.Array) -> tuple[Any, ...]:
        drawn = self.draw(key)
        return drawn if isinstance(drawn, tuple) else (drawn,)


CASES: dict[str, Callable[[], Case]] = {}
"""Every case by name; it is built when it is first used."""


SLOW: set[str] = set()
"""Those that are run with ``-m slow``."""


def case(
    name: str, *args: Any, slow: bool = False
) -> Callable[[Callable[..., Case]], Callable[..., Case]]:
    """Registers what a function returns for these arguments."""

    def register(build: Callable[..., Case]) -> Callable[..., Case]:
        assert name not in CASES
        CASES[name] = lambda: build(*args)
        if slow:
            SLOW.add(name)
        return build

    return register


def normal(*shape: int) -> Callable[[jax.Array], jax.Array]:
    """Returns a function of a key that draws N(0, 1)."""
    return lambda key: jax.random.normal(key, shape)


def plain(net: Callable[..., tuple[Any, Outputs]]) -> dict[str, Any]:
    """Makes the two forms of a model from a function that hands out its sites' outputs."""
    return {"captured": net, "apply_fn": lambda params, *inputs: net(params, *inputs)[0]}


def fill(shapes: Any, constants: Mapping[str, float] | None = None) -> Any:
    """Draws variables on the host, since a compiled ``init`` would take longer than its test.

    Args:
        shapes: What the model's init would return.
        constants: By a pattern of paths, what fills these leaves. Without one a scale or a
            variance is 1, a weight is drawn, and anything else is 0.
    """
    rng, table = np.random.default_rng(0), {**(constants or {}), **_CONSTANTS}

    def one(path: Any, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        value = next(value for pattern, value in table.items() if re.fullmatch(pattern, name))
        size = (0.5 * leaf.shape[-1] / leaf.size) ** 0.5 if value is None else 0.0
        return jnp.asarray(rng.normal(value or 0.0, size, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)


_CONSTANTS = {".*(scale|var)": 1.0, ".*(kernel|embedding|table|/w)": None, ".*": 0.0}

_LAYERS = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.ConvTranspose, nn.Embed, nn.WeightNorm)


def linen(
    module: nn.Module,
    draw: Callable[[jax.Array], Any],
    *,
    constants: Mapping[str, float] | None = None,
    mutable: Any = False,
    **options: Any,
) -> Case:
    """Makes the case of a Flax module, whose layers are captured by Flax.

    Args:
        module: The module.
        draw: Draws its inputs.
        constants: What ``fill`` is to put into leaves.
        mutable: The collections that it updates.
        options: The other attributes of the case.
    """
    drawn = jax.eval_shape(draw, jax.random.key(1))
    inputs = drawn if isinstance(drawn, tuple) else (drawn,)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(2)}
    variables = fill(jax.eval_shape(module.init, rngs, *inputs), constants)
    leaves = flatten_dict(variables["params"])

    def captured(variables: Any, *inputs: Any, **keywords: Any) -> tuple[Any, Outputs]:
        output, state = module.apply(
            variables, *inputs, capture_intermediates=_is_layer, mutable=mutable, **keywords
        )
        return output, _by_leaf(state["intermediates"], leaves)

    options = {"apply_fn": module.apply, **options}
    return Case(params=variables, captured=captured, draw=draw, **options)


def _is_layer(module: nn.Module, method: str) -> bool:
    return isinstance(module, _LAYERS) and method in ("__call__", "attend")


def _by_leaf(state: Any, leaves: Mapping[tuple[str, ...], Any]) -> Outputs:
    outputs: Outputs = {}
    for (*place, _), values in flatten_dict(state).items():
        outputs.setdefault(_weight_of(tuple(place), leaves), []).extend(values)
    return outputs


def _weight_of(place: tuple[str, ...], leaves: Mapping[tuple[str, ...], Any]) -> str:
    """Names the weight of the layer at a place: its kernel, or the gain that normalizes it."""
    names = ("kernel", "embedding", *(leaf[-1] for leaf in leaves if leaf[:-1] == place))
    name = next(name for name in names if (*place, name) in leaves)
    return "/".join(("params", *place, name))
