"""What a user may pass as parameters, dummy input and dummy loss, brought to one form."""

import inspect
import numbers
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

__all__ = [
    "call_loss",
    "check_counts",
    "check_layers",
    "check_params",
    "describe_call",
    "draw_inputs",
    "positional",
]


def positional(fn: Callable[..., Any], also: Collection[str]) -> list[str]:
    """Names the positional parameters that must be given, and those of the names ``also``."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = inspect.Parameter.empty
    return [
        p.name for p in parameters if p.kind in kinds and (p.default is required or p.name in also)
    ]


def describe_call(fn: Any) -> str:
    """Names a function in an error message."""
    while hasattr(fn, "func") or hasattr(fn, "fn"):  # a partial, or a function as a cache key
        fn = fn.func if hasattr(fn, "func") else fn.fn
    return getattr(fn, "__name__", None) or repr(fn)


def draw_inputs(dummy_input: Any, key: jax.Array, batch_size: int) -> tuple[Any, ...]:
    """Returns the inputs of one model evaluation as positional arguments."""
    drawn = _called(dummy_input, key, batch_size) if callable(dummy_input) else dummy_input
    return drawn if isinstance(drawn, tuple) else (drawn,)


def _called(dummy_input: Callable[..., Any], key: jax.Array, batch_size: int) -> Any:
    names = positional(dummy_input, ("batch_size", "batchsz"))
    if names[:1] in (["batch_size"], ["batchsz"]):
        given, args = "batch_size", (batch_size,)
    else:
        given, args = "key", (key,)
        if len(names) >= 2:
            given, args = "key, batch_size", (key, batch_size)
    try:
        return dummy_input(*args)
    except Exception as error:
        error.add_note(
            f"raised by dummy_input, the function {describe_call(dummy_input)}, which was called "
            f"with ({given}); the order is params, apply_fn, dummy_input, dummy_loss"
        )
        raise


def call_loss(dummy_loss: Callable[..., Any], output: Any, key: jax.Array) -> jax.Array:
    """Returns the loss of an output as a float32 scalar.

    Raises:
        ValueError: The loss is not a real scalar.
    """
    takes_key = len(positional(dummy_loss, ("key", "rng"))) >= 2
    loss = dummy_loss(output, key) if takes_key else dummy_loss(output)
    leaves = jax.tree.leaves(loss)
    scalar = len(leaves) == 1 and jnp.shape(leaves[0]) == ()
    if not scalar or not jnp.issubdtype(jnp.result_type(leaves[0]), jnp.floating):
        found = jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", loss)
        raise ValueError(
            f"dummy_loss must return one real scalar, but {describe_call(dummy_loss)} returned "
            f"{found}; reduce it, for example with .mean()"
        )
    return jnp.asarray(leaves[0], jnp.float32)


def check_counts(**counts: Any) -> None:
    """Raises ValueError for an argument that is no positive integer."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{name}={value!r} must be a positive integer")


def check_layers(layers: Sequence[Any], apply_fn: Callable[..., Any]) -> None:
    """Raises ValueError where a model has no layers."""
    if not layers:
        raise ValueError(
            f"{describe_call(apply_fn)} never combines a parameter with an input; pass the inputs "
            "as arguments instead of closing over them"
        )


def check_params(leaves: Sequence[Any], paths: Sequence[str]) -> None:
    """Raises ValueError for a tree without a floating-point leaf, or with a path twice."""
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise ValueError(
            f"params has several leaves at the path {', '.join(twice)}, which keys that hold '/' "
            "can bring about; rename them, so that reports and scales can tell them apart"
        )
    if any(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves):
        return
    kinds = [f"{p or '.'}: {jnp.result_type(x)}" for p, x in zip(paths, leaves, strict=True)]
    raise ValueError(
        "params has no floating-point leaf to rescale, only "
        f"{', '.join(kinds) or 'an empty tree'}; pass the variables that model.init returned"
    )
