"""What a user passes, looked at: the error says what it is, and what to pass instead."""

import numbers
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jinit._arithmetic import is_float, on_cpu
from jinit._kinds import is_bare_function, is_key, kind_of, model_kind
from jinit.empirical.user_functions import ARGUMENT_ORDER, describe_call, hiding, positional
from jinit.layers import Survey
from jinit.modules.kinds import (
    HOLDING,
    Form,
    calls_itself,
    form_of,
    hidden_module,
    lacks_variables,
    name_of,
)

__all__ = [
    "check_arguments",
    "check_arrays",
    "check_counts",
    "check_finite",
    "check_inputs",
    "check_key",
    "check_layers",
    "check_loss",
    "check_model",
    "check_params",
    "check_survey",
    "zero_leaves",
]

_HINTS = {
    "a Keras model": (
        "pass as params [v.value for v in model.trainable_variables], and as apply_fn a function "
        "that calls model.stateless_call"
    ),
    "a torch module": "pass its parameters as JAX arrays, and as apply_fn a JAX function",
}

_FIRST = (
    "which holds no variables; pass those that its init returned before it, as in "
    "jinit.calibrate(variables, model, x, loss)"
)
_ALONE = "as in jinit.calibrate(model, x, loss)"
_SWAPPED = f"a model that calls itself needs none, {_ALONE}"
_WITH_CALL = "as in jinit.calibrate(model, lambda m, x: m(x), x, loss)"


def check_arguments(
    params: Any, apply_fn: Any, dummy_input: Any, dummy_loss: Any
) -> tuple[Any, Any, Any]:
    """Returns apply_fn, dummy_input and dummy_loss as they were meant.

    A model that calls itself is given without an apply_fn, and what follows it is one place ahead.

    Raises:
        TypeError: An argument is not of the kind of its place.
    """
    alone = calls_itself(params)
    if alone and apply_fn is not None:
        if dummy_loss is None and callable(dummy_input):
            apply_fn, dummy_input, dummy_loss = None, apply_fn, dummy_input
        elif dummy_input is None:
            apply_fn, dummy_input = None, apply_fn
    check_model(params, apply_fn, f"; {ARGUMENT_ORDER}")
    check_inputs(dummy_input)
    try:
        check_loss(dummy_loss)
    except TypeError as error:
        if alone and callable(apply_fn) and len(positional(apply_fn, ())) == 1:
            error.add_note(f"apply_fn takes one argument, as a loss does; {_SWAPPED}")
        raise
    return apply_fn, dummy_input, dummy_loss


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
            f"(output) or (output, key); {ARGUMENT_ORDER}"
        )


def check_model(params: Any, apply_fn: Any, order: str = "") -> None:
    """Raises TypeError unless one is a model or a tree, and the other applies it."""
    form, applied = form_of(params), form_of(apply_fn)
    if form in HOLDING:
        _check_applies_object(params, apply_fn, applied)
        return
    if form is not None or is_bare_function(params):
        raise TypeError(f"params is {_no_tree(params, form, order)}")
    hint = _HINTS.get(model_kind(apply_fn) or "", "")
    if applied in HOLDING:
        hint = f"it holds its variables, so pass it first, {_ALONE}"
    elif isinstance(apply_fn, type):
        hint = "pass a function of (params, *inputs), such as the apply of an instance"
    elif applied is None and not callable(apply_fn):
        hint = f"pass a function of (params, *inputs){order}"
        if hasattr(apply_fn, "apply"):
            hint = "pass its apply"
    if hint:
        raise TypeError(f"apply_fn is {name_of(apply_fn)}; {hint}")


def _no_tree(value: Any, form: Form | None, order: str) -> str:
    """Says of what is no tree of arrays what it is, and what to pass in its place."""
    hint = "pass an instance of it"
    if not isinstance(value, type):
        if form is not None:
            return f"{name_of(value)}, {_FIRST}"
        if hasattr(value, "init") and hasattr(value, "apply"):
            return f"a {type(value).__name__}, {_FIRST}"
        hidden = hidden_module(value)
        if hidden is not None:
            return f"a function {hiding(hidden)}"
        hint = _HINTS.get(model_kind(value) or "", "pass a tree of arrays")
    return f"{kind_of(value)}, which is not a tree of arrays; {hint}{order}"


def _check_applies_object(model: Any, apply_fn: Any, applied: Form | None) -> None:
    """Raises TypeError for what does not apply an object that holds its variables."""
    found, held = f"apply_fn is {name_of(apply_fn)}", name_of(model)
    if applied is not None or lacks_variables(getattr(apply_fn, "__self__", None)):
        raise TypeError(f"{found}, but {held} holds its variables itself; pass it alone, {_ALONE}")
    if callable(apply_fn) and not isinstance(apply_fn, type):
        return
    if not calls_itself(model):
        raise TypeError(
            f"params is {held}, which cannot be called; pass a function of "
            f"(model, *inputs) after it, {_WITH_CALL}"
        )
    if apply_fn is not None:
        raise TypeError(f"{found}; pass a function of (model, *inputs), {_WITH_CALL}")


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


def check_counts(**counts: Any) -> None:
    """Raises ValueError for an argument that is no positive integer."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{name}={value!r} must be a positive integer")


def check_survey(found: Survey, apply_fn: Callable[..., Any]) -> None:
    """Raises ValueError where no parameter reaches the output, or none meets an input."""
    if not found.reached:
        raise ValueError(
            f"the output of {describe_call(apply_fn)} depends on no parameter; "
            "apply_fn must compute it from its first argument"
        )
    check_layers(found.layers, apply_fn)


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
    if any(map(is_float, leaves)):
        return
    kinds = [f"{p or '.'}: {jnp.result_type(x)}" for p, x in zip(paths, leaves, strict=True)]
    raise ValueError(
        "params has no floating-point leaf to rescale, only "
        f"{', '.join(kinds) or 'an empty tree'}; pass the variables that model.init returned"
    )


def check_finite(inputs: Any) -> None:
    """Raises ValueError for inputs that are not finite; traced values are not looked at."""
    leaves = enumerate(jax.tree.leaves(inputs))
    known = {n: leaf for n, leaf in leaves if is_float(leaf) and not isinstance(leaf, Tracer)}
    if not all(finite for finite, _ in _seen(known).values()):
        raise ValueError("dummy_input holds values that are not finite; pass inputs without them")


def zero_leaves(
    leaves: Sequence[Any], paths: Sequence[str], trainable: Sequence[bool]
) -> tuple[int, ...]:
    """Lists the leaves that hold nothing but zeros; traced values are not looked at.

    Raises:
        ValueError: A parameter is not finite. A mask among the constants need not be.
    """
    known = {
        number: leaf
        for number, leaf in enumerate(leaves)
        if is_float(leaf) and np.size(leaf) and not isinstance(leaf, Tracer)
    }
    seen = _seen(known)
    bad: list[str] = [paths[n] for n, (finite, _) in seen.items() if trainable[n] and not finite]
    if bad:
        raise ValueError(
            f"params holds values that are not finite at {', '.join(bad)}; "
            "draw these parameters again before they are measured"
        )
    return tuple(number for number, (_, nonzero) in seen.items() if not nonzero)


def _seen(leaves: dict[int, Any]) -> dict[int, Any]:
    """Looks at leaves where they are, of which one process may not hold all."""
    return jax.device_get((_look if on_cpu(leaves.values()) else _looked)(leaves))


def _look(leaves: dict[int, Any]) -> dict[int, tuple[Any, Any]]:
    """Returns of every leaf whether all of it is finite, and whether any of it is not zero."""
    found = {}
    for number, leaf in leaves.items():
        xp = jnp if isinstance(leaf, Tracer) else np
        array = xp.asarray(leaf)
        found[number] = xp.isfinite(array).all(), (array != 0).any()
    return found


_looked = jax.jit(_look)
