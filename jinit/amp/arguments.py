"""Arguments of the wrong kind: the error says what was passed, and what to write."""

import numbers
import reprlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from jinit._kinds import is_bare_function, model_kind
from jinit._known_names import WITHOUT
from jinit.modules.kinds import is_framework_type

__all__ = [
    "check_aux",
    "check_function",
    "check_grads",
    "check_leaves",
    "check_loss",
    "check_model",
    "check_opt_state",
    "check_optimizer",
    "check_overflow",
    "check_state",
    "shown",
]

_MODELS = {
    "a Keras model": (
        "pass a function of (variables, *inputs) that calls model.stateless_call, and as its "
        "variables [v.value for v in model.trainable_variables]"
    ),
    "a torch module": "write it in JAX: its operations are torch's, and its parameters tensors",
}
_ORDER = "in amp.initialize models go before optimizers"
_OPTIMIZERS = {
    ("flax.nnx", "Optimizer"): (
        "pass the optax transformation that it was made of, and what comes back to "
        "nnx.Optimizer(model, tx, wrt=nnx.Param)"
    ),
    ("flax.training.train_state", "TrainState"): (
        "pass its tx, and what comes back to TrainState.create(tx=...)"
    ),
    ("optax", "MultiSteps"): "for MultiSteps: its gradient_transformation()",
    ("keras.optimizers", "Optimizer"): "write optax's, as in optax.adam(0.001)",
}


def shown(value: Any) -> str:
    """Describes a value by its type, and by itself where that is short.

    Example:
        >>> shown("cuda"), shown(len), shown(dict), shown({}), shown(None)
        ("str 'cuda'", 'builtin_function_or_method len', 'class dict', 'dict', 'NoneType')
    """
    if isinstance(value, type):
        return f"class {value.__name__}"
    name = type(value).__name__
    if isinstance(value, str | numbers.Number):
        return f"{name} {reprlib.repr(value)}"
    if isinstance(value, np.ndarray | jax.Array):
        return f"an array of {value.dtype}{list(value.shape)}"
    if type(value) is tuple:
        return f"({', '.join(map(shown, value))})"
    own = getattr(value, "__name__", None) if callable(value) else None
    if isinstance(own, str):
        return f"{name} {own}"
    kind = model_kind(value)
    return f"{kind} ({name})" if kind else name


def check_function(name: str, fn: Any) -> None:
    """Raises TypeError where what should be a function is something else.

    Args:
        name: The public function that takes it.
        fn: What was passed. An instance that can be called is a function.
    """
    advice = _function_advice(name, fn)
    if advice:
        raise TypeError(f"{name} takes a function, not {shown(fn)}: {advice}")


def _function_advice(name: str, fn: Any) -> str:
    kind = model_kind(fn)
    if isinstance(fn, type):
        return "pass a function, or a method of an instance"
    if kind == "a linen module" and fn.scope is None:
        return "pass its apply, which takes the variables"
    if kind == "a torch module":
        return _MODELS[kind]
    if callable(fn):
        return ""
    if _is_optimizer(fn):
        return "it is an optimizer"
    if callable(getattr(fn, "apply", None)):
        return "pass its apply"
    return WITHOUT.get((name, "fn"), "pass the function itself, not what it returns")


def check_model(model: Any) -> None:
    """Raises TypeError where a model is not a function of variables and inputs."""
    advice = _model_advice(model)
    if advice:
        raise TypeError(
            "a model must be an apply_fn(variables, *inputs) or a module, not "
            f"{shown(model)} ({advice})"
        )


def _model_advice(model: Any) -> str:
    if isinstance(model, optax.GradientTransformation):
        return f"an optimizer: {_ORDER}"
    advice = _MODELS.get(model_kind(model) or "")
    if advice:
        return advice
    if isinstance(model, type):
        return "pass an instance, or a function"
    if callable(model):
        return ""
    return "pass its apply" if hasattr(model, "apply") else "pass the function that applies it"


def check_optimizer(tx: Any, *, alike: bool = False) -> None:
    """Raises TypeError where an optimizer is not an optax transformation.

    Args:
        tx: What was passed.
        alike: Takes whatever has the methods of one as well, such as ``optax.MultiSteps``.
    """
    if isinstance(tx, optax.GradientTransformation) or (alike and _is_optimizer(tx)):
        return
    raise TypeError(
        f"an optimizer must be an optax.GradientTransformation, not {shown(tx)} "
        f"({_optimizer_advice(tx)})"
    )


def _is_optimizer(tx: Any) -> bool:
    methods = (getattr(tx, name, None) for name in ("init", "update"))
    return not isinstance(tx, type) and all(map(callable, methods))


def _optimizer_advice(tx: Any) -> str:
    for (module, name), advice in _OPTIMIZERS.items():
        if is_framework_type(tx, module, name):
            return advice
    if isinstance(tx, str):
        return f"the level is given by name: opt_level={tx!r}" if tx[:1] in "oO" else _CREATE
    if isinstance(tx, numbers.Number):
        return f"a learning rate is given to one: optax.adam({tx!r})"
    if getattr(tx, "__module__", "").startswith("optax") and callable(tx):
        return f"call it: optax.{tx.__name__}(...)"
    if callable(tx) or model_kind(tx) or hasattr(tx, "apply"):
        return _ORDER
    if isinstance(tx, tuple):
        return "a state is made by one: pass what made it"
    return _CREATE


_CREATE = "write one, as in optax.adam(0.001)"


def check_state(name: str, state: Any, wanted: Any) -> None:
    """Raises TypeError where an update is given another state than the optimizer's own."""
    if all(hasattr(state, field) for field in wanted._fields):
        return
    raise TypeError(
        f"{name} takes a {wanted.__name__}, not {shown(state)}: write update(grads, state, "
        "params) with the state that init(params) or the last update returned"
    )


def check_leaves(name: str, tree: Any) -> None:
    """Raises TypeError where a tree holds what is not an array, and lists it by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    bad = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves if not _is_array(leaf)]
    if bad:
        listed = ", ".join(f"{name}{path} ({shown(leaf)})" for path, leaf in bad)
        equinox = model_kind(tree) == "an Equinox module"
        hint = "; pass eqx.filter(model, eqx.is_inexact_array)" if equinox else ""
        raise TypeError(f"{name} must be a tree of arrays, but not an array is {listed}{hint}")


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float | complex)


def check_opt_state(opt_state: Any) -> None:
    """Raises TypeError where what should be an optimizer's state cannot be one."""
    plain = opt_state is None or isinstance(opt_state, str | numbers.Number)
    if plain or is_bare_function(opt_state) or _is_optimizer(opt_state):
        raise TypeError(
            f"opt_state must be the state of an optimizer, not {shown(opt_state)}: write "
            "opt_state = tx.init(params), and after a step the state that tx.update returned"
        )


def check_loss(loss: Any) -> None:
    """Raises TypeError for a loss that is not an array or a number."""
    if _is_array(loss) or hasattr(loss, "__jax_array__"):
        return
    advice = "take the loss alone"
    if loss is None:
        advice = "return the loss from the function"
    elif type(loss) is tuple:
        advice += ", and write has_aux=True where a function returns (loss, aux)"
    elif isinstance(loss, tuple):
        advice = "the order is loss, opt_state"
    elif callable(loss):
        advice = "call it, or write amp.value_and_grad(loss_fn, opt_state)"
    raise TypeError(f"a loss must be a float32 scalar, not {shown(loss)}: {advice}")


def check_aux(returned: Any) -> None:
    """Raises TypeError unless a loss function returned a loss and something beside it."""
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise TypeError(
            f"has_aux=True asks for (loss, aux), but the loss function returned {shown(returned)}: "
            "leave has_aux out, or return both"
        )


def check_grads(grads: Any, unscaled: type) -> None:
    """Raises TypeError for gradients that are not a tree of arrays, or were unscaled before.

    Args:
        grads: The gradients.
        unscaled: The type of unscaled gradients.
    """
    if grads is None or is_bare_function(grads):
        raise TypeError(
            f"grads must be a tree of gradients, not {shown(grads)}: write "
            "grads = jax.grad(loss_fn)(params)"
        )
    leaves = jax.tree_util.tree_leaves_with_path(
        grads, is_leaf=lambda node: isinstance(node, unscaled)
    )
    for path, leaf in leaves:
        if isinstance(leaf, unscaled):
            raise TypeError(
                f"grads{jax.tree_util.keystr(path)} is unscaled already, and grads is "
                f"{shown(grads)}: hand over the UnscaledGrads alone, as in "
                "loss, grads = amp.value_and_grad(loss_fn, opt_state)(params)"
            )
    check_leaves("grads", grads)


def check_overflow(overflow: Any) -> None:
    """Raises TypeError unless the marks of losses are a mapping."""
    if not isinstance(overflow, Mapping):
        raise TypeError(
            f"overflow must hold a mark for every loss_id, not {shown(overflow)}: write "
            "overflow=grads.overflow of what amp.value_and_grad or amp.unscale returned"
        )
