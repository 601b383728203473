"""One pass over the equations of a jaxpr, whatever stands for its values."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from jax.extend import core as jex

__all__ = ["walk"]

Value = TypeVar("Value")


def _value_of(literal: Any) -> Any:
    return literal.val


def walk(
    jaxpr: jex.Jaxpr,
    consts: Iterable[Value],
    args: Iterable[Value],
    step: Callable[[int, jex.JaxprEqn, list[Value]], Iterable[Value]],
    literal: Callable[[Any], Value] = _value_of,
) -> list[Value]:
    """Goes through a jaxpr's equations in order, and keeps what stands for each value.

    What stands for a value may be an array, the tag of a dataflow or a number. A jaxpr defines
    every variable once, and before it is read, so one dictionary holds them all.

    Args:
        jaxpr: The open jaxpr.
        consts: What stands for its constants.
        args: What stands for its inputs.
        step: Given an equation's index, the equation, and what stands for its operands, returns
            what stands for its results.
        literal: What stands for a literal; by default its value.

    Returns:
        What stands for the outputs.
    """
    env: dict[Any, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atoms: Sequence[Any]) -> list[Value]:
        return [literal(atom) if isinstance(atom, jex.Literal) else env[atom] for atom in atoms]

    for index, equation in enumerate(jaxpr.eqns):
        results = step(index, equation, read(equation.invars))
        env.update(zip(equation.outvars, results, strict=True))
    return read(jaxpr.outvars)
