"""What a value is, in the words of an error message."""

import numbers
from typing import Any

__all__ = ["is_bare_function", "is_key", "is_number", "kind_of", "model_kind"]

_MODELS = {
    ("equinox", "Module"): "an Equinox module",
    ("flax.linen", "Module"): "a linen module",
    ("keras", "Layer"): "a Keras model",
    ("torch", "Module"): "a torch module",
}


def is_key(value: Any) -> bool:
    """Returns whether a value may be a key: a typed one, or an array, as legacy keys are.

    Example:
        >>> import jax
        >>> is_key(jax.random.key(0)), is_key(0), is_key(None)
        (True, False, False)
    """
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return False
    import jax

    return value.shape != () or jax.numpy.issubdtype(dtype, jax.dtypes.prng_key)


def is_bare_function(value: Any) -> bool:
    """Returns whether a value can be called and is not a tree, as models of some frameworks are.

    Example:
        >>> is_bare_function(len), is_bare_function({"w": 1})
        (True, False)
    """
    import jax

    return callable(value) and jax.tree.leaves(value) == [value]


def is_number(value: Any) -> bool:
    """Returns whether a value is a real number, which a bool is not.

    Example:
        >>> is_number(0.5), is_number(True), is_number("0.5")
        (True, False, False)
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def model_kind(value: Any) -> str | None:
    """Names the framework that a model is of; None for NNX's and what is not a model.

    Example:
        >>> import flax.linen as nn
        >>> model_kind(nn.Dense(2)), model_kind(2)
        ('a linen module', None)
    """
    for base in type(value).__mro__:
        for (package, name), kind in _MODELS.items():
            if base.__name__ == name and f"{base.__module__}.".startswith(f"{package}."):
                return kind
    return None


def kind_of(value: Any) -> str:
    """Describes a value by what it is and how it is called.

    Example:
        >>> kind_of(len), kind_of({}), kind_of(dict), kind_of(None)
        ('the function len', 'a dict', 'the class dict', 'None')
    """
    kind = model_kind(value)
    if kind is not None:
        return f"{kind} ({type(value).__name__})"
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of {value.dtype}{list(value.shape)}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
