"""Tells the names of primitives from those of functions, and from typing errors."""

import difflib
import warnings
from collections.abc import Collection, Iterable

import jax
from jax.extend.core import Primitive, primitives

__all__ = ["warn_of_names"]

_HOMES = (jax.nn, jax.numpy, jax.lax, jax.scipy.special)


def warn_of_names(names: Iterable[str], listed: Collection[str], stacklevel: int) -> None:
    """Warns of names that move nothing, which a primitive of the user's own may have all the same.

    Args:
        names: What a user wrote.
        listed: Primitives that are in a list.
        stacklevel: That of ``warnings.warn``, counted from the caller.
    """
    own = (value for value in vars(primitives).values() if isinstance(value, Primitive))
    known = {primitive.name for primitive in own} | {*listed}
    found = [text for text in (_doubt(name, known) for name in names if name not in known) if text]
    if found:
        warnings.warn(
            f"{'; '.join(found)}. It moves nothing, unless a primitive of your own has the name: "
            "amp.explain shows the names of primitives",
            stacklevel=stacklevel + 1,
        )


def _doubt(name: str, known: Collection[str]) -> str | None:
    home = next((home for home in _HOMES if hasattr(home, name)), None)
    if home is not None:
        return f"{name!r} is the function {home.__name__}.{name} and not a primitive"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
    return f"{name!r} is not a primitive of JAX, did you mean {close[0]!r}?" if close else None
