"""Rolling: equal blocks of a traced function, such as a network's layers, become one loop."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.core import Tracer

from jinit.tracing._jax import bind, equation_context
from jinit.tracing.rolling.flat import FlatEquation, FlatProgram, flatten
from jinit.tracing.rolling.loop import Carried, Internal, Loop, Made, Outside, Source
from jinit.tracing.rolling.matching import find_loops
from jinit.tracing.rolling.remat import run_lifted
from jinit.tracing.rolling.schedule import Schedule, schedule
from jinit.tracing.structure import Path
from jinit.tracing.trace import TracedFunction

__all__ = ["Rolled", "roll"]


@dataclass(frozen=True)
class Rolled:
    """A traced function whose equal blocks are loops.

    Attributes:
        traced: The function. Its inputs are the stacked variables, in the order of ``groups``,
            and then the other inputs as before.
        groups: For every stacked variable the indices of the variables in it, block by block;
            a single index stands for that variable as it was, without a new axis.
        loops: The paths of the loops that were made.
    """

    traced: TracedFunction
    groups: tuple[tuple[int, ...], ...]
    loops: frozenset[Path]

    def stack(self, leaves: Sequence[Any]) -> list[Any]:
        """Stacks variables along a new leading axis, group by group."""
        return [_stacked([leaves[index] for index in group]) for group in self.groups]

    def unstack(self, values: Sequence[Any]) -> list[Any]:
        """Divides one value a group, with its leading axis, into one a variable."""
        single = {}
        for group, value in zip(self.groups, values, strict=True):
            parts = [value] if len(group) == 1 else [value[i] for i in range(len(group))]
            single.update(zip(group, parts, strict=True))
        return [single[index] for index in sorted(single)]


def roll(traced: TracedFunction, trainable: Sequence[bool], *, least_saved: int = 24) -> Rolled:
    """Replaces every run of equal blocks by one ``lax.scan`` over the blocks' variables.

    Blocks are equal if they run the same equations, in the same order, on operands that each is
    a result of the same block or of the one before, the same value for all blocks, or one of
    every block's own. What is not certain to be so stays as it is. Values are those of the
    original up to rounding.

    Args:
        traced: The function; its first inputs are its variables.
        trainable: For each variable whether it is a parameter. Values computed from parameters
            alone are computed inside the loop, from variables that were stacked outside, so that
            what follows parameters through the program can follow them on.
        least_saved: How many equations a loop must save. Its own cost, in a program that holds
            the model once, is that of some hundred simple equations; in one that transforms
            the model several times it is soon won back.

    Returns:
        The rolled function, and how its variables are stacked; where no blocks are equal, the
        function as it was.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jinit.tracing import roll, trace
        >>> def chain(ws, x):
        ...     for w in ws:
        ...         x = jnp.tanh(x @ w)
        ...     return x
        >>> ws, x = [jnp.eye(2)] * 20, jnp.ones((1, 2))
        >>> rolled = roll(trace(chain, ws, x), [True] * 20)
        >>> [equation.primitive.name for equation in rolled.traced.jaxpr.eqns]
        ['scan']
        >>> rolled.stack(ws)[0].shape
        (20, 2, 2)
    """
    single = tuple((index,) for index in range(len(trainable)))
    unchanged = Rolled(traced, single, frozenset())
    program = flatten(traced)
    order = schedule(program, trainable, len(traced.in_avals))
    loops = find_loops(order, least_saved)
    if not loops:
        return unchanged
    stacked = {group for loop in loops for group in loop.groups}
    inside = {index for group in stacked for index in group}
    groups = sorted([*stacked, *(group for group in single if group[0] not in inside)], key=min)
    rolled = _retrace(traced, program, order, loops, tuple(groups))
    same = list(map(_type, rolled.traced.out_avals)) == list(map(_type, traced.out_avals))
    return rolled if same else unchanged


def _type(aval: Any) -> tuple[Any, ...]:
    """Returns what an output is; not on which mesh, where its axes are laid along none of it."""
    return aval.shape, aval.dtype, aval.weak_type, aval.sharding.spec


def _stack(values: Sequence[Any]) -> Any:
    """Stacks along a new leading axis, as ``jnp.stack`` does but for keeping weak types."""
    return lax.concatenate([lax.expand_dims(value, (0,)) for value in values], 0)


def _stacked(values: Sequence[Any]) -> Any:
    return _stack(values) if len(values) > 1 else values[0]


def _retrace(
    traced: TracedFunction,
    program: FlatProgram,
    order: Schedule,
    loops: Sequence[Loop],
    groups: tuple[tuple[int, ...], ...],
) -> Rolled:
    avals, rest = traced.in_avals, traced.in_avals[order.num_variables :]
    stacked = [jax.eval_shape(_stacked, [avals[index] for index in group]) for group in groups]
    scans: list[bool] = []

    def run(*inputs: Any) -> list[Any]:
        emission = _Emission(program, order, groups, inputs)
        emission.sequence(loops)
        scans[:] = emission.scans
        return [emission.read(value) for value in program.outputs]

    with jax.disable_jit(False):  # which would unroll the loops again
        closed = jax.make_jaxpr(run)(*stacked, *rest)
    places = [i for i, e in enumerate(closed.jaxpr.eqns) if e.primitive.name == "scan"]
    made = frozenset((place,) for place, new in zip(places, scans, strict=True) if new)
    result = TracedFunction(
        closed.jaxpr, closed.consts, closed.in_avals, closed.out_avals, traced.out_tree
    )
    return Rolled(result, groups, made)


def _execute(flat: FlatEquation, values: Sequence[Any]) -> list[Any]:
    with contextlib.ExitStack() as contexts:
        for equation in (*flat.within, flat.equation):
            contexts.enter_context(equation_context(equation))
        count = len(flat.equation.invars)
        if any(isinstance(number, Tracer) for number in values[count:]):
            return run_lifted(flat.equation, values[:count], values[count:])
        return bind(flat.equation, values[:count], flat.equation.params)


class _Emission:
    """Runs a program with its loops, each equation of a block once.

    A value is computed once and lies in one of three places. Of ``x = tanh(x @ w)`` three times,
    with w the variables 0, 1, 2 and x the input 3::

        env      3: x                            values on their own, by number
        stacks   (0, 1, 2): w, of shape (3, n, n)    values that came or were put one on another
        rows     result of tanh in block 1: (stack, 1)   what the loop stacked, if it is read later

    A row becomes a value of ``env`` when something reads it alone.

    Attributes:
        scans: For each scan that was run, in order, whether it is one of the loops.
    """

    def __init__(
        self,
        program: FlatProgram,
        order: Schedule,
        groups: Sequence[tuple[int, ...]],
        inputs: Sequence[Any],
    ) -> None:
        self.program, self.order = program, order
        self.env: dict[int, Any] = dict(program.fixed)
        self.stacks: dict[tuple[int, ...], Any] = {}
        self.rows: dict[int, tuple[Any, int]] = {}
        self.scans: list[bool] = []
        for group, value in zip(groups, inputs[: len(groups)], strict=True):
            if len(group) == 1:
                self.env[group[0]] = value
            self.stacks[group] = value
        self.env.update(enumerate(inputs[len(groups) :], order.num_variables))

    def read(self, value: int) -> Any:
        """Returns a value; what is deferred, or a row of a loop's results, is computed now."""
        if value not in self.env:
            if value in self.rows:
                stacked, row = self.rows[value]
                self.env[value] = lax.index_in_dim(stacked, row, keepdims=False)
            else:
                self.run(self.order.made[value])
        return self.env[value]

    def typed(self, value: int) -> Any:
        """Returns a value on its own, where a literal must carry its weak type with it."""
        if value in self.program.literals and self.program.avals[value].weak_type:
            return np.asarray(self.program.fixed[value]).item()
        return self.read(value)

    def run(self, flat: FlatEquation) -> None:
        values = [self.read(operand) for operand in flat.operands]
        self.scans += [False] * (flat.equation.primitive.name == "scan")
        self.env.update(zip(flat.results, _execute(flat, values), strict=True))

    def sequence(self, loops: Sequence[Loop]) -> None:
        """Runs all equations, and the loops in place of theirs."""
        position = 0
        for loop in loops:
            self.stretch(position, loop.start)
            self.loop(loop)
            position = loop.stop
        self.stretch(position, len(self.order.sequence))

    def stretch(self, start: int, stop: int) -> None:
        for flat in self.order.sequence[start:stop]:
            self.run(flat)

    def stacked(self, values: tuple[int, ...]) -> Any:
        """Returns values stacked: as they came, or as constants, or stacked now."""
        if values not in self.stacks:
            self.stacks[values] = self.new_stack(values)
        return self.stacks[values]

    def new_stack(self, values: tuple[int, ...]) -> Any:
        weak = self.program.avals[values[0]].weak_type
        if not weak and all(value in self.program.literals for value in values):
            return np.stack([np.asarray(self.program.fixed[value]) for value in values])
        return _stack([self.typed(value) for value in values])

    def loop(self, loop: Loop) -> None:
        first = [self.typed(value) for _, value in loop.carries]
        slices = [self.stacked(values) for values in loop.scanned]
        constants = {value: self.read(value) for value in loop.constants}

        def step(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
            results = _Block(constants, carry, slices).run(loop)
            return [results[i] for i, _ in loop.carries], [results[i] for i in loop.exits]

        self.scans.append(True)
        last, stacked = lax.scan(step, first, slices, length=len(loop.results))
        for (index, _), value in zip(loop.carries, last, strict=True):
            self.env[int(loop.results[-1, index])] = value
        for index, value in zip(loop.exits, stacked, strict=True):
            column = tuple(loop.results[:, index].tolist())
            self.stacks[column] = value
            self.rows.update((result, (value, row)) for row, result in enumerate(column))


class _Block:
    """One iteration of a loop."""

    def __init__(
        self, constants: Mapping[int, Any], carry: Sequence[Any], slices: Sequence[Any]
    ) -> None:
        self.constants, self.carry, self.slices = constants, carry, slices
        self.results: dict[int, Any] = {}
        self.made: dict[int, list[Any]] = {}

    def run(self, loop: Loop) -> dict[int, Any]:
        for step in loop.steps:
            results = _execute(step.equation, [self.read(source) for source in step.sources])
            self.results.update(enumerate(results, step.first))
        return self.results

    def read(self, source: Source) -> Any:
        match source:
            case Internal(index):
                return self.results[index]
            case Carried(slot):
                return self.carry[slot]
            case Outside(value):
                return self.constants[value]
            case Made(equation, operands, result):
                return self.make(equation, operands)[result]
            case _:
                return self.slices[source.slot]

    def make(self, flat: FlatEquation, operands: Sequence[Source]) -> list[Any]:
        first = flat.results[0]
        if first not in self.made:
            self.made[first] = _execute(flat, [self.read(operand) for operand in operands])
        return self.made[first]
