"""A traced function as one list of equations over numbered values."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jax.extend import core as jex

from jinit.tracing._jax import aval_of
from jinit.tracing.rolling.fingerprint import array_key
from jinit.tracing.rolling.remat import is_liftable, is_remat, lifted_literals
from jinit.tracing.structure import Body, inlined_body
from jinit.tracing.trace import TracedFunction
from jinit.tracing.walk import walk

__all__ = ["FlatEquation", "FlatProgram", "flatten"]


class FlatEquation(NamedTuple):
    """An equation between numbered values.

    Attributes:
        equation: The equation as it was traced.
        within: The jit equations it was taken out of.
        operands: Its operands, and after them the whole numbers inside a ``jax.checkpoint``.
        results: Its results.
    """

    equation: jex.JaxprEqn
    within: tuple[jex.JaxprEqn, ...]
    operands: tuple[int, ...]
    results: range


@dataclass
class FlatProgram:
    """A program of equations over numbered values; the first are the inputs.

    ``tanh(x @ w) + 1`` as a function of w and x has the inputs 0 and 1, the equations::

        2 = dot_general 1 0
        3 = tanh 2
        5 = add 3 4

    the literal ``fixed[4] == 1`` and the output 5.

    Attributes:
        avals: Shape and dtype of every value.
        fixed: The literals and constants by their number.
        literals: For those that are literals, whether they may vary over equal blocks.
        equations: The equations in order.
        outputs: The numbers of the outputs.
    """

    avals: list[Any] = field(default_factory=list)
    fixed: dict[int, Any] = field(default_factory=dict)
    literals: dict[int, bool] = field(default_factory=dict)
    equations: list[FlatEquation] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


def flatten(traced: TracedFunction) -> FlatProgram:
    """Takes the equations out of every jit that pins no sharding."""
    flattening = _Flattening()
    program = flattening.program
    body = Body(traced.jaxpr, tuple(traced.consts))
    inputs = [flattening.new(aval) for aval in traced.in_avals]
    program.outputs = flattening.inline(body, inputs, ())
    return program


class _Flattening:
    def __init__(self) -> None:
        self.program = FlatProgram()
        self.numbers: dict[Any, int] = {}

    def new(self, aval: Any) -> int:
        self.program.avals.append(aval)
        return len(self.program.avals) - 1

    def fix(self, key: Any, value: Any, aval: Any) -> int:
        if key not in self.numbers:
            self.numbers[key] = self.new(aval)
            self.program.fixed[self.numbers[key]] = value
        return self.numbers[key]

    def literal(self, atom: Any) -> int:
        number = self.fix(("literal", aval_of(atom), array_key(atom.val)), atom.val, aval_of(atom))
        self.program.literals[number] = is_liftable(atom)
        return number

    def inline(
        self, body: Body, operands: Sequence[int], within: tuple[jex.JaxprEqn, ...]
    ) -> list[int]:
        def constant(variable: Any, const: Any) -> int:
            aval = aval_of(variable)
            return self.fix(("const", aval, array_key(const)), const, aval)

        def step(index: int, equation: jex.JaxprEqn, values: list[int]) -> Sequence[int]:
            return self.equation(equation, tuple(values), within)

        consts = map(constant, body.jaxpr.constvars, body.consts)
        return walk(body.jaxpr, consts, operands, step, self.literal)

    def equation(
        self, equation: jex.JaxprEqn, operands: tuple[int, ...], within: tuple[jex.JaxprEqn, ...]
    ) -> Sequence[int]:
        body = inlined_body(equation)
        if body is not None:
            return self.inline(body, operands, (*within, equation))
        if is_remat(equation):
            operands += tuple(map(self.literal, lifted_literals(equation.params["jaxpr"])))
        first = len(self.program.avals)
        self.program.avals.extend(map(aval_of, equation.outvars))
        results = range(first, len(self.program.avals))
        self.program.equations.append(FlatEquation(equation, within, operands, results))
        return results
