"""Says what to do with a model that cannot be decorated or wrapped."""

import inspect
from typing import Any

from flax import nnx

__all__ = ["advice", "class_name", "is_generator"]


def advice(value: Any, name: str) -> str | None:
    """Returns what to write for a model or layer of another kind than Linen's, or None.

    Args:
        value: What was passed.
        name: The function that made the defaults, such as ``keras_defaults``.

    Returns:
        A sentence without its beginning, or None where it is nothing that is known.
    """
    cls = value if isinstance(value, type) else type(value)
    roots = {base.__module__.partition(".")[0] for base in cls.__mro__}
    if issubclass(cls, nnx.Module):
        return (
            "an NNX module that is constructed keeps what it has; construct it inside: "
            f"with {name}(): model = {cls.__name__}(...)"
        )
    return next((text for root, text in _OTHERS.items() if root in roots), None)


_OTHERS = {
    "keras": "the layers of Keras itself are left alone, and take kernel_initializer= and the like",
    "equinox": (
        "the layers of Equinox are left alone; jinit.initializers.reinit draws their leaves anew"
    ),
    "haiku": (
        "the layers of Haiku are left alone; jinit.initializers.reinit draws their leaves anew"
    ),
    "torch": "the modules of torch itself are left alone",
}
"""What to write for models by the package that their classes come from."""


def class_name(value: object) -> str:
    """Names a class as itself and anything else by its class."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def is_generator(function: Any) -> bool:
    """Returns whether the body of a function runs after its call."""
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
