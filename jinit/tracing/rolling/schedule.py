"""Which equations of a flat program run in order, and which only where they are needed.

An example, of two layers whose parameters are cast ahead of the model::

    v0, v1 = cast w0, cast w1    deferred: they depend on variables alone
    y0 = x @ v0                  label 0
    a0 = tanh y0                 label 1
    y1 = a0 @ v1                 label 0: v1 is the same function of a variable of the same kind
    a1 = tanh y1                 label 1

The sequence has the labels 0 1 0 1, in which equal blocks are found as repetitions.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jax.extend import core as jex

from jinit._arithmetic import is_float_dtype
from jinit.tracing._jax import sub_jaxprs
from jinit.tracing.rolling.fingerprint import Fingerprints
from jinit.tracing.rolling.flat import FlatEquation, FlatProgram

__all__ = ["OUTSIDE", "Schedule", "schedule"]

OUTSIDE = -(1 << 40)
"""The place of a value that no equation of the sequence computes: before all others."""

_DEEPEST = 32  # deferred equations are followed by recursion
_TRAINED, _FLOAT, _LOOSE, _DATA = 1, 2, 4, 8  # what a value depends on, as bits


@dataclass(frozen=True)
class Schedule:
    """A program's equations, divided into a sequence and those that are deferred.

    Deferred are the equations on floating-point variables alone, such as a cast of the whole
    tree ahead of the model, and the slices of what is divided among blocks, such as split keys:
    they become part of the block that uses them. All others keep their order.

    Attributes:
        program: The program.
        num_variables: The first inputs are variables.
        reach: For every value what it depends on, as bits.
        sequence: The equations that keep their order.
        labels: A number for each of them, equal where they are the same operation on operands of
            the same kind.
        weights: The number of equations in each of them.
        made: For every result of a deferred equation the equation.
        classes: And a number, equal for results that are the same function of their inputs.
        index: For every value its number among the results of the sequence, or ``OUTSIDE``.
        ready: The number of the last result that a value needs.
    """

    program: FlatProgram
    num_variables: int
    reach: Sequence[int]
    sequence: Sequence[FlatEquation]
    labels: np.ndarray
    weights: np.ndarray
    made: dict[int, FlatEquation]
    classes: dict[int, int]
    index: np.ndarray
    ready: np.ndarray

    def is_variable(self, value: int) -> bool:
        """Returns whether a value is a variable as it was given."""
        return value < self.num_variables

    def is_trained(self, value: int) -> bool:
        """Returns whether a value is computed from parameters without data."""
        return self.reach[value] & (_TRAINED | _DATA) == _TRAINED

    def reads_variables(self, value: int) -> bool:
        """Returns whether a value is computed from floating-point variables."""
        return bool(self.reach[value] & _FLOAT)

    @cached_property
    def operands(self) -> np.ndarray:
        """The operands of the sequence, in one array."""
        return np.array([o for flat in self.sequence for o in flat.operands], int)

    @cached_property
    def operand_at(self) -> np.ndarray:
        """Where those of each equation start; one entry more than equations."""
        return _starts(len(flat.operands) for flat in self.sequence)

    @cached_property
    def results(self) -> np.ndarray:
        """The results of the sequence, in one array."""
        return np.array([r for flat in self.sequence for r in flat.results], int)

    @cached_property
    def result_at(self) -> np.ndarray:
        """Where those of each equation start; one entry more than equations."""
        return _starts(len(flat.results) for flat in self.sequence)

    @cached_property
    def uses(self) -> np.ndarray:
        """How often each value is an operand or an output, but for equations never needed."""
        reads = [*self.program.outputs, *self.operands.tolist()]
        needed = set(reads)
        for flat in reversed(self.program.equations):
            deferred = flat.results and flat.results[0] in self.made
            if deferred and not needed.isdisjoint(flat.results):
                reads += flat.operands
                needed.update(flat.operands)
        return np.bincount(np.array(reads, int), minlength=len(self.index))


def schedule(program: FlatProgram, trainable: Sequence[bool], num_inputs: int) -> Schedule:
    """Divides a program's equations.

    Args:
        program: The program.
        trainable: For each variable, which are the first inputs, whether it is a parameter.
        num_inputs: How many inputs the program has.

    Returns:
        The equations in order, and those that are deferred.
    """
    reach = _reach(program, trainable, num_inputs)
    division = _Division(program, reach, _Labels(program, reach, trainable))
    for position, flat in enumerate(program.equations):
        division.add(flat, position)
    return Schedule(
        program=program,
        num_variables=len(trainable),
        reach=reach,
        sequence=division.sequence,
        labels=np.array(division.sequence_labels, int),
        weights=_Sizes(division.labels.fingerprints).of_all(division.sequence),
        made=division.made,
        classes=division.labels.classes,
        index=division.index,
        ready=division.ready,
    )


def _reach(program: FlatProgram, trainable: Sequence[bool], num_inputs: int) -> list[int]:
    """Returns what each value depends on; constants depend on nothing."""
    reach = [0] * len(program.avals)
    for value in range(num_inputs):
        if value >= len(trainable):
            reach[value] = _DATA
        elif not is_float_dtype(program.avals[value].dtype):
            reach[value] = _LOOSE
        else:
            reach[value] = _FLOAT | (_TRAINED if trainable[value] else 0)
    for flat in program.equations:
        joined = 0
        for operand in flat.operands:
            joined |= reach[operand]
        for result in flat.results:
            reach[result] = joined
    return reach


class _Labels:
    """Numbers equations, equal where they are the same operation on operands of the same kind.

    Attributes:
        fingerprints: The numbers of equations as such.
        classes: Of floating-point variables, and of what deferred equations make of them, a
            number each, equal for values that are the same function of variables alike.
    """

    def __init__(
        self, program: FlatProgram, reach: Sequence[int], trainable: Sequence[bool]
    ) -> None:
        self.program, self.reach = program, reach
        self.fingerprints = Fingerprints()
        self.classes: dict[int, int] = {}
        for value, trained in enumerate(trainable):
            if reach[value] & _FLOAT:
                key = ("variable", program.avals[value], trained)
                self.classes[value] = self.fingerprints.number(key)

    def of(self, flat: FlatEquation, position: int) -> int:
        if flat.equation.effects:
            return self.fingerprints.number(("effect", position))
        results = tuple(self.program.avals[result] for result in flat.results)
        operands = tuple(map(self.kind, flat.operands))
        key = (self.fingerprints.equation(flat.equation), operands, results)
        return self.fingerprints.number(key)

    def kind(self, value: int) -> Hashable:
        """Describes an operand by what must not differ between equal equations.

        Whole numbers in the program, such as those folded into a key, may differ.
        """
        if value in self.program.literals and not self.program.literals[value]:
            return "literal", value
        if self.reach[value] & _FLOAT and value in self.classes:
            return "made", self.classes[value]
        return self.program.avals[value]

    def classify(self, flat: FlatEquation, label: int) -> None:
        """Gives the results of a deferred equation their classes."""
        for number, result in enumerate(flat.results):
            self.classes[result] = self.fingerprints.number(("made", label, number))


class _Division:
    """The equations so far: those in sequence, and those deferred.

    Invariant: ``ready[value]`` is the number of the last result of the sequence that must have
    been computed before the value can be, whether the value is deferred or not.
    """

    def __init__(self, program: FlatProgram, reach: Sequence[int], labels: _Labels) -> None:
        self.reach, self.labels = reach, labels
        self.parts = _parts(program, labels.fingerprints)
        self.sequence: list[FlatEquation] = []
        self.sequence_labels: list[int] = []
        self.made: dict[int, FlatEquation] = {}
        self.index = np.full(len(program.avals), OUTSIDE)
        self.ready = np.full(len(program.avals), OUTSIDE)
        self._depths: dict[int, int] = {}
        self._num_results = 0

    def add(self, flat: FlatEquation, position: int) -> None:
        label = self.labels.of(flat, position)
        depth = 1 + max((self._depths.get(operand, 0) for operand in flat.operands), default=0)
        if depth <= _DEEPEST and self._is_deferred(flat):
            self._defer(flat, label, depth)
        else:
            self._append(flat, label, depth)

    def _is_deferred(self, flat: FlatEquation) -> bool:
        if flat.equation.effects:
            return False
        reach = 0
        for operand in flat.operands:
            reach |= self.reach[operand]
        if reach & _FLOAT:
            return not reach & (_LOOSE | _DATA)
        return flat.equation.primitive.name == "slice" and len(self.parts[flat.operands[0]]) > 1

    def _defer(self, flat: FlatEquation, label: int, depth: int) -> None:
        ready = max((self.ready[operand] for operand in flat.operands), default=OUTSIDE)
        self.labels.classify(flat, label)
        for result in flat.results:
            self.made[result], self._depths[result] = flat, depth
            self.ready[result] = ready

    def _append(self, flat: FlatEquation, label: int, depth: int) -> None:
        self.sequence.append(flat)
        self.sequence_labels.append(label)
        if depth > _DEEPEST:  # what builds on it is not deferred either
            self._depths.update(dict.fromkeys(flat.results, depth))
        for result in flat.results:
            self.index[result] = self.ready[result] = self._num_results
            self._num_results += 1


def _parts(program: FlatProgram, fingerprints: Fingerprints) -> dict[int, set[int]]:
    """Lists the different slices of each value that is not a float, such as split keys."""
    parts: dict[int, set[int]] = {}
    for flat in program.equations:
        if flat.equation.primitive.name == "slice":
            (whole,) = flat.operands
            known = parts.setdefault(whole, set())
            if not is_float_dtype(program.avals[whole].dtype):
                known.add(fingerprints.equation(flat.equation))
    return parts


class _Sizes:
    """Counts equations with those inside them, each kind once."""

    def __init__(self, fingerprints: Fingerprints) -> None:
        self.fingerprints = fingerprints
        self.known: dict[int, int] = {}

    def of_all(self, sequence: Sequence[FlatEquation]) -> np.ndarray:
        return np.array([self.of(flat.equation) for flat in sequence], int)

    def of(self, equation: jex.JaxprEqn) -> int:
        number = self.fingerprints.equation(equation)
        if number not in self.known:
            inner = [e for jaxpr in sub_jaxprs(equation) for e in jaxpr.eqns]
            self.known[number] = 1 + sum(map(self.of, inner))
        return self.known[number]


def _starts(sizes: Iterable[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.fromiter(sizes, int))])
