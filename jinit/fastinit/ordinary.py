"""Leaves that are not drawn number by number: each kind of them is compiled once, and run as usual.

A decomposition of what was drawn, say, or what a batch of data decides. What was drawn is handed
to the program, so that it has no generator of its own to compile.
"""

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jinit.fastinit.program import InitProgram
from jinit.fastinit.reading.recipe import Recipe, evaluate, recipes_of
from jinit.fastinit.reading.values import Computed, Drawn, Equation, Given, Keys, Known, Value
from jinit.tracing._jax import bind, equation_context
from jinit.tracing.rolling.fingerprint import Fingerprints

__all__ = ["Ordinary", "array_of", "arrays_under", "ordinary_of", "together", "whole"]


Input: TypeAlias = Known | Keys | Given | Drawn


@dataclass(frozen=True)
class Ordinary:
    """A program of some leaves, and what goes into it.

    Attributes:
        leaves: The numbers of the leaves.
        key: What the program is, equal where two are the same.
        what: What it computes, in words.
        inputs: What is handed to it, in order.
        run: Computes the leaves of the inputs' arrays.
    """

    leaves: tuple[int, ...]
    key: Hashable
    what: str
    inputs: tuple[Input, ...]
    run: Callable[[Sequence[Any]], list[Any]]

    @property
    def drawn(self) -> list[Drawn]:
        """The inputs that are drawn first."""
        return [value for value in self.inputs if isinstance(value, Drawn) and value.random]


def together(values: Mapping[int, Value]) -> list[list[int]]:
    """Divides leaves into those that depend on the same equations."""
    group_of: dict[int, list[int]] = {}  # by the id of an equation
    groups: list[list[int]] = []
    for number, value in values.items():
        mine = [number]
        for source in _equations([value]):
            other = group_of.get(id(source), mine)
            if other is not mine:
                mine += other
                groups.remove(other)
                group_of.update({key: mine for key, old in group_of.items() if old is other})
            group_of[id(source)] = mine
        groups.append(mine)
    return [sorted(group) for group in groups]


def _equations(roots: Sequence[Value]) -> list[Equation]:
    """Lists the equations that values depend on, each after those it depends on."""
    found: list[Equation] = []
    seen: set[int] = set()
    stack: list[tuple[Equation, bool]] = [
        (value.source, False) for value in reversed(roots) if isinstance(value, Computed)
    ]
    while stack:
        source, operands_done = stack.pop()
        if operands_done:
            found.append(source)
        elif id(source) not in seen:
            seen.add(id(source))
            stack.append((source, True))
            stack += [
                (value.source, False) for value in source.operands if isinstance(value, Computed)
            ]
    return found


def arrays_under(root: Value) -> list[Any]:
    """Lists the arrays from outside that a value depends on."""
    values = [value for source in _equations([root]) for value in source.operands]
    return [value.array for value in [root, *values] if isinstance(value, Given)]


def ordinary_of(
    leaves: Sequence[int], values: Mapping[int, Value], fingerprints: Fingerprints
) -> Ordinary:
    """Makes the program of some leaves.

    Args:
        leaves: Their numbers.
        values: What they are.
        fingerprints: Numbers equations, those of all programs that are compared.
    """
    roots = [values[number] for number in leaves]
    equations = _equations(roots)
    inputs = _inputs(equations, roots)
    places = {id(value): place for place, value in enumerate(inputs)}
    numbers = {id(equation): number for number, equation in enumerate(equations)}

    def place(value: Value) -> tuple[int, int]:
        if isinstance(value, Computed):
            return numbers[id(value.source)], value.index
        return -1, places[id(value)]

    steps = [(source.equation, [place(value) for value in source.operands]) for source in equations]
    outputs = [place(root) for root in roots]
    key = (
        tuple((fingerprints.equation(equation), tuple(of)) for equation, of in steps),
        tuple(map(_input_key, inputs)),
        tuple(outputs),
    )
    kinds = [_kind(value) for value in inputs]

    def run(arrays: Sequence[Any]) -> list[Any]:
        results = {-1: [kind(array) for kind, array in zip(kinds, arrays, strict=True)]}
        for number, (equation, operands) in enumerate(steps):
            read = [results[source][index] for source, index in operands]
            with equation_context(equation):
                results[number] = bind(equation, read, equation.params)
        return [results[source][index] for source, index in outputs]

    return Ordinary(tuple(leaves), key, _described(roots, equations, inputs), tuple(inputs), run)


def _described(
    roots: Sequence[Value], equations: Sequence[Equation], inputs: Sequence[Input]
) -> str:
    if any(isinstance(value, Given) for value in inputs):
        return "what the arguments hold"
    if len(roots) > 1:
        return "one another"
    drawn = sum(isinstance(value, Drawn) and value.random for value in inputs)
    names = [source.equation.primitive.name for source in equations] or ["one number"]
    told = next((name for name in _TOLD if name in names), names[-1])
    return f"{drawn} drawn, by {told}" if drawn else told


_TOLD = ("qr", "svd", "eigh", "cholesky", "sort", "scan", "while", "dot_general", "concatenate")
"""The operations that say most of a program, which is called after the first of them in it."""


def whole(program: InitProgram, arrays: Sequence[Any]) -> Ordinary:
    """Makes the program of all leaves."""
    leaves = tuple(range(len(program.leaves)))
    inputs = tuple(Given(array) for array in arrays)
    return Ordinary(leaves, "whole", "the whole program", inputs, program.run)


def _inputs(equations: Sequence[Equation], roots: Sequence[Value]) -> list[Input]:
    operands = [value for source in equations for value in source.operands]
    unique = {id(value): value for value in [*operands, *roots]}
    return [value for value in unique.values() if not isinstance(value, Computed)]


def _input_key(value: Input) -> Hashable:
    if isinstance(value, Known):
        return "known", value.shape, value.array.dtype
    if isinstance(value, Keys):
        return "keys", value.shape
    if isinstance(value, Given):
        return "given", value.array.shape, value.array.dtype
    if value.random:
        return "drawn", value.shape, value.dtype
    return "alike", value.shape, tuple(recipe for recipe, _ in recipes_of(value.segments))


def _kind(value: Input) -> Callable[[Any], Any]:
    """Returns how an input's array becomes what the program computes with."""
    if isinstance(value, Keys):
        return functools.partial(jax.random.wrap_key_data, impl="threefry2x32")
    if isinstance(value, Drawn) and not value.random:
        recipes = [recipe for recipe, _ in recipes_of(value.segments)]
        return lambda _: _alike(recipes, value.shape)
    return jnp.asarray


def _alike(recipes: Sequence[Recipe], shape: tuple[int, ...]) -> jax.Array:
    """Spreads the number of each part of an array over it."""
    parts = [evaluate(recipe, _no_bits, ()) for recipe in recipes]
    if len(parts) == 1:
        return jnp.broadcast_to(parts[0], shape)
    return jnp.repeat(jnp.stack(parts), math.prod(shape) // len(parts)).reshape(shape)


def _no_bits(number: int, width: int) -> jax.Array:
    raise AssertionError("what is alike everywhere has no bits")


def array_of(value: Input) -> Any:
    """Returns the array that is handed to a program for an input that is not drawn."""
    if isinstance(value, Keys):
        return value.words
    return value.array if isinstance(value, Known | Given) else None
