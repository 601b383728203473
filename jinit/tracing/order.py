"""Which equations of a flat program run in order, and which only where they are needed."""

from collections.abc import Hashable, Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from jinit.tracing._jax import sub_jaxprs
from jinit.tracing.fingerprint import Fingerprints
from jinit.tracing.flat import FlatEquation, FlatProgram

__all__ = ["OUTSIDE", "Order"]

OUTSIDE = -(1 << 40)
"""The place of a value that no equation of the sequence computes: before all others."""

_DEEPEST = 32  # deferred equations are followed by recursion
_TRAINED, _FLOAT, _LOOSE, _DATA = 1, 2, 4, 8  # what a value depends on, as bits


class Order:
    """A program's equations, divided into a sequence and those that are deferred.

    Deferred are the equations on floating-point variables alone, such as a cast of the whole
    tree ahead of the model, and the slices of what is divided among blocks, such as split keys:
    they become part of the block that uses them. All others keep their order.

    Attributes:
        program: The program.
        num_variables: The first inputs are variables.
        trainable: For each variable whether it is a parameter.
        sequence: The equations that keep their order.
        labels: A number for each of them, equal where they are the same operation on operands of
            the same kind.
        weights: The number of equations in each of them.
        operands: The operands of the sequence, in one array.
        results: Likewise their results.
        operand_at: Where those of each equation start; one entry more than equations.
        result_at: Likewise for the results.
        index: For every value its number among the results, or ``OUTSIDE``.
        ready: The number of the last result that a value needs.
        uses: How often each value is an operand or an output.
        made: For every result of a deferred equation the equation.
        classes: And a number, equal for results that are the same function of their inputs.
    """

    def __init__(self, program: FlatProgram, trainable: Sequence[bool], num_inputs: int) -> None:
        self.program = program
        self.num_variables = len(trainable)
        self.trainable = tuple(trainable)
        self.made: dict[int, FlatEquation] = {}
        self.classes: dict[int, int] = {}
        self.sequence: list[FlatEquation] = []
        self._fingerprints = Fingerprints()
        self._sizes: dict[int, int] = {}
        self._depths: dict[int, int] = {}
        self._reach = [0] * len(program.avals)
        self.index = np.full(len(program.avals), OUTSIDE)
        self.ready = np.full(len(program.avals), OUTSIDE)
        self._num_results = 0
        self._place_inputs(num_inputs)
        self._place_equations()

    def is_variable(self, value: int) -> bool:
        """Returns whether a value is a variable as it was given."""
        return value < self.num_variables

    def is_trained(self, value: int) -> bool:
        """Returns whether a value is computed from parameters without data."""
        return self._reach[value] & (_TRAINED | _DATA) == _TRAINED

    def reads_variables(self, value: int) -> bool:
        """Returns whether a value is computed from floating-point variables."""
        return bool(self._reach[value] & _FLOAT)

    def _place_inputs(self, num_inputs: int) -> None:
        for value in range(num_inputs):
            if not self.is_variable(value):
                self._reach[value] = _DATA
            elif not jnp.issubdtype(self.program.avals[value].dtype, jnp.inexact):
                self._reach[value] = _LOOSE
            else:
                trained = self.trainable[value]
                self._reach[value] = _FLOAT | (_TRAINED if trained else 0)
                self.classes[value] = self._fingerprints.number((
                    "variable", self.program.avals[value], trained,
                ))  # fmt: skip

    def _place_equations(self) -> None:
        self._parts = self._find_parts()
        labels = []
        for position, flat in enumerate(self.program.equations):
            reach = 0
            for operand in flat.operands:
                reach |= self._reach[operand]
            for result in flat.results:
                self._reach[result] = reach
            label = self._label(flat, position)
            if self._is_deferred(flat, reach):
                self._defer(flat, label)
            else:
                labels.append(label)
                self._append(flat)
        self._count(labels)

    def _is_deferred(self, flat: FlatEquation, reach: int) -> bool:
        if flat.equation.effects or self._depth(flat) > _DEEPEST:
            return False
        if reach & _FLOAT:
            return not reach & (_LOOSE | _DATA)
        return flat.equation.primitive.name == "slice" and len(self._parts[flat.operands[0]]) > 1

    def _depth(self, flat: FlatEquation) -> int:
        """Counts how many deferred equations an equation builds on, one after another."""
        return 1 + max((self._depths.get(operand, 0) for operand in flat.operands), default=0)

    def _find_parts(self) -> dict[int, set[int]]:
        """Lists the different slices of each value that is not a float, such as split keys."""
        parts: dict[int, set[int]] = {}
        for flat in self.program.equations:
            if flat.equation.primitive.name == "slice":
                (whole,) = flat.operands
                known = parts.setdefault(whole, set())
                if not jnp.issubdtype(self.program.avals[whole].dtype, jnp.inexact):
                    known.add(self._fingerprints.equation(flat.equation))
        return parts

    def _label(self, flat: FlatEquation, position: int) -> int:
        if flat.equation.effects:
            return self._fingerprints.number(("effect", position))
        results = tuple(self.program.avals[result] for result in flat.results)
        operands = tuple(map(self._kind, flat.operands))
        key = (self._fingerprints.equation(flat.equation), operands, results)
        return self._fingerprints.number(key)

    def _kind(self, value: int) -> Hashable:
        """Describes an operand by what must not differ between equal equations.

        Whole numbers in the program, such as those folded into a key, may differ.
        """
        if value in self.program.literals and not self.program.literals[value]:
            return "literal", value
        if self._reach[value] & _FLOAT:
            known = self.classes.get(value)
            if known is not None:
                return "made", known
        return self.program.avals[value]

    def _defer(self, flat: FlatEquation, label: int) -> None:
        ready = max((self.ready[operand] for operand in flat.operands), default=OUTSIDE)
        depth = self._depth(flat)
        for number, result in enumerate(flat.results):
            self.made[result], self._depths[result] = flat, depth
            self.classes[result] = self._fingerprints.number(("made", label, number))
            self.ready[result] = ready

    def _append(self, flat: FlatEquation) -> None:
        self.sequence.append(flat)
        depth = self._depth(flat)
        if depth > _DEEPEST:  # what builds on it is not deferred either
            self._depths.update(dict.fromkeys(flat.results, depth))
        for result in flat.results:
            self.index[result] = self.ready[result] = self._num_results
            self._num_results += 1

    def _count(self, labels: Iterable[int]) -> None:
        self.labels = np.fromiter(labels, int)
        self.weights = np.array([self._size(flat.equation) for flat in self.sequence], int)
        self.operand_at = _starts(len(flat.operands) for flat in self.sequence)
        self.result_at = _starts(len(flat.results) for flat in self.sequence)
        self.results = np.array([r for flat in self.sequence for r in flat.results], int)
        self.operands = np.array([o for flat in self.sequence for o in flat.operands], int)
        self.uses = np.bincount(np.array(self._reads(), int), minlength=len(self.index))

    def _reads(self) -> list[int]:
        """Lists every value as often as it is read, but for equations that are never needed."""
        reads = [*self.program.outputs, *self.operands.tolist()]
        needed = set(reads)
        for flat in reversed(self.program.equations):
            if (
                flat.results
                and flat.results[0] in self.made
                and not needed.isdisjoint(flat.results)
            ):
                reads += flat.operands
                needed.update(flat.operands)
        return reads

    def _size(self, equation: jex.JaxprEqn) -> int:
        """Counts an equation and those inside it."""
        number = self._fingerprints.equation(equation)
        if number not in self._sizes:
            inner = [e for jaxpr in sub_jaxprs(equation) for e in jaxpr.eqns]
            self._sizes[number] = 1 + sum(map(self._size, inner))
        return self._sizes[number]


def _starts(sizes: Iterable[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.fromiter(sizes, int))])
