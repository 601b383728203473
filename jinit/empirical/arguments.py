"""Arguments of the wrong kind: the error says what was passed, and what to pass."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jinit._kinds import is_bare_function, is_key, kind_of, model_kind
from jinit.empirical.inputs import describe_call

__all__ = [
    "check_arguments",
    "check_arrays",
    "check_call",
    "check_inputs",
    "check_key",
    "check_loss",
    "check_model",
    "check_pair",
]

_ORDER = "the order is params, apply_fn, dummy_input, dummy_loss"
_HINTS = {
    "a linen module": "pass model.apply, and as params the variables that model.init returned",
    "a Keras model": (
        "pass as params [v.value for v in model.trainable_variables], and as apply_fn a function "
        "that calls model.stateless_call"
    ),
    "a torch module": "pass its parameters as JAX arrays, and as apply_fn a JAX function",
}


def check_arguments(params: Any, apply_fn: Any, dummy_input: Any, dummy_loss: Any) -> None:
    """Raises TypeError where an argument is not of the kind of its place."""
    check_model(params, apply_fn, f"; {_ORDER}")
    check_inputs(dummy_input)
    check_loss(dummy_loss)


def check_inputs(dummy_input: Any) -> None:
    """Raises TypeError where there is no input, or its shape alone."""
    if dummy_input is None:
        raise TypeError("dummy_input is None; pass example inputs, or a function that draws them")
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(dummy_input)):
        raise TypeError("dummy_input holds shapes; pass arrays, or a function that draws them")


def check_key(key: Any) -> jax.Array:
    """Returns the key, or that of 0 where there is none; raises TypeError for what is not one."""
    if key is None:
        return jax.random.key(0)
    if not is_key(key):
        raise TypeError(f"key is {kind_of(key)}; pass one such as jax.random.key(0)")
    return key


def check_loss(dummy_loss: Any) -> None:
    """Raises TypeError for a loss that is not a function."""
    if not callable(dummy_loss):
        raise TypeError(
            f"dummy_loss is {kind_of(dummy_loss)}, which cannot be called; pass a function of "
            f"(output) or (output, key); {_ORDER}"
        )


def check_model(params: Any, apply_fn: Any, order: str = "") -> None:
    """Raises TypeError unless one is a tree and the other a function of it."""
    if is_bare_function(params):
        hint = _HINTS.get(model_kind(params) or "", "pass a tree of arrays")
        raise TypeError(
            f"params is {kind_of(params)}, which is not a tree of arrays; {hint}{order}"
        )
    hint = _HINTS.get(model_kind(apply_fn) or "", "")
    if isinstance(apply_fn, type):
        hint = "pass a function of (params, *inputs), such as the apply of an instance"
    elif not callable(apply_fn):
        hint = f"pass a function of (params, *inputs){order}"
        if hasattr(apply_fn, "apply"):
            hint = "pass its apply"
    if hint:
        raise TypeError(f"apply_fn is {kind_of(apply_fn)}; {hint}")


def check_arrays(leaves: Sequence[Any], paths: Sequence[str]) -> None:
    """Raises TypeError for leaves that are not arrays, and lists them all."""
    bad = [(path or ".", x) for path, x in zip(paths, leaves, strict=True) if not _is_array(x)]
    if not bad:
        return
    hint = (
        "pass the arrays alone, for example by equinox.partition(model, equinox.is_array), and "
        "combine them with the rest inside apply_fn"
    )
    if all(isinstance(leaf, jax.ShapeDtypeStruct) for _, leaf in bad):
        hint = "pass what model.init returned, not its shapes"
    elif all(hasattr(leaf, "value") for _, leaf in bad):
        hint = "pass the value of each"
    listed = ", ".join(f"{path} ({type(leaf).__name__})" for path, leaf in bad)
    raise TypeError(f"params holds leaves that are not arrays: {listed}; {hint}")


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray | np.generic):
        numeric = jnp.issubdtype(leaf.dtype, np.number) or jnp.issubdtype(leaf.dtype, np.bool_)
        return numeric or leaf.dtype == jax.dtypes.float0
    return isinstance(leaf, jax.Array | bool | int | float | complex)


def check_call(apply_fn: Callable[..., Any], inputs: Sequence[Any], **options: Any) -> None:
    """Raises TypeError for a model that does not take its inputs by position."""
    try:
        signature = inspect.signature(apply_fn)
    except (TypeError, ValueError):  # some builtins have no signature
        return
    try:
        signature.bind(None, *inputs, **options)
    except TypeError as error:
        given = ", ".join(["params", *["input"] * len(inputs), *(f"{n}=..." for n in options)])
        raise TypeError(
            f"apply_fn is called as {describe_call(apply_fn)}({given}), but {error}; pass a "
            f"function of (params, *inputs), and several inputs as a tuple; {_ORDER}"
        ) from None


def check_pair(returned: Any, apply_fn: Any) -> None:
    """Raises TypeError unless a model returned an output and something beside it."""
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise TypeError(
            f"has_aux=True asks for (output, aux), but {describe_call(apply_fn)} returned "
            f"{kind_of(returned)}; leave has_aux out, or return both, as Flax does with mutable="
        )


@contextlib.contextmanager
def explaining_pairs(returned: Any, apply_fn: Any, advice: str) -> Iterator[None]:
    """Raises ValueError where a loss fails on what may be an output and something beside it."""
    try:
        yield
    except Exception as error:
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise
        raise ValueError(
            f"{describe_call(apply_fn)} returned a pair, on which dummy_loss failed ({error}); if "
            f"its second part is state, as with Flax's mutable=, {advice}"
        ) from error
