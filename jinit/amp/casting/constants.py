"""Constants that a half dtype does not hold, as the user wrote them.

In ``x + 1e-12`` with a float16 ``x`` JAX rounds the constant to 0 before the program exists, and
in ``mask * -1e9`` to minus infinity. The same function of float32 arrays still has it: where the
two programs do the same, the constants of the half one are read from the other::

    of float16: b = add a 0.0:f16[]                    of float32: b = add a 1e-12:f32[]
    restored:   b = add a 1e-12:f16[]                  which a rule may now see, and cast
"""

from typing import Any

import numpy as np
from jax.extend import core as jex

from jinit.amp.casting.dtypes import FLOAT32
from jinit.amp.casting.ranges import is_lost
from jinit.tracing import aval_of, equations_of, replace_beside

__all__ = ["has_lost_constants", "restore_constants"]


def has_lost_constants(jaxpr: jex.Jaxpr, half: np.dtype) -> bool:
    """Returns whether a program has a constant that another may have been rounded to."""
    return any(
        _may_be_lost(atom, half) for equation in equations_of(jaxpr) for atom in equation.invars
    )


def _may_be_lost(atom: Any, half: np.dtype) -> bool:
    if not isinstance(atom, jex.Literal) or aval_of(atom).dtype != half:
        return False
    value = float(atom.val)
    return np.isinf(value) or (value == 0 and is_lost(1e-12, half))


def restore_constants(jaxpr: jex.Jaxpr, wide: jex.Jaxpr, half: np.dtype) -> jex.Jaxpr:
    """Returns a program with its lost constants, in float32, from the same one of wider arrays.

    Args:
        jaxpr: The half program.
        wide: The one of float32 arrays. Where it does something else nothing is read from it;
            conversions may be anywhere in both.
        half: The half dtype.
    """

    def restored(atom: Any, other: Any) -> Any:
        if not _may_be_lost(atom, half) or not isinstance(other, jex.Literal):
            return atom
        if aval_of(other).dtype != FLOAT32 or not is_lost(float(other.val), half):
            return atom
        return jex.Literal(np.float32(float(other.val)), aval_of(atom))

    return replace_beside(jaxpr, wide, restored, counts=_computes)


def _computes(equation: jex.JaxprEqn) -> bool:
    return equation.primitive.name != "convert_element_type"
