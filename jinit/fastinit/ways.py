"""In which way each leaf of an initialization is made, as its value allows.

==========  ==============================================================================
copied      known before anything is drawn, or given: put where it is to lie
filled      one number everywhere
drawn       number by number, by a program for each of a few recipes
computed    anything else, by a program for each kind; what goes into it is drawn first
at once     all leaves, by the whole program: nothing else can be done with its generator
==========  ==============================================================================
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from jinit.fastinit.drawing.placing import leading_axes
from jinit.fastinit.ordinary import Ordinary, arrays_under, ordinary_of, together, whole
from jinit.fastinit.program import InitProgram
from jinit.fastinit.reading.read import outside, read_program
from jinit.fastinit.reading.recipe import Ingredients, Recipe, recipes_of
from jinit.fastinit.reading.values import Drawn, Given, Keys, Known, Value, fill_of

__all__ = ["Ways", "ways_of"]

_PARTITIONABLE = "jax_threefry_partitionable"

Recipes = Mapping[int, tuple[Recipe, tuple[Ingredients, ...]]]


@dataclass(frozen=True)
class Ways:
    """How each leaf is made.

    Attributes:
        copied: Leaves that are known or given, by their numbers as all leaves here.
        filled: The number that a leaf holds everywhere.
        drawn: Leaves that are drawn.
        ordinary: The programs of the others.
        recipes: By the id of what is drawn, a leaf or what goes into one: its recipe, and what goes
            into that for each of its segments.
        reason: Why the whole program makes all of them, or None.
    """

    copied: dict[int, Known | Keys | Given] = field(default_factory=dict)
    filled: dict[int, np.ndarray] = field(default_factory=dict)
    drawn: dict[int, Drawn] = field(default_factory=dict)
    ordinary: list[Ordinary] = field(default_factory=list)
    recipes: dict[int, tuple[Recipe, tuple[Ingredients, ...]]] = field(default_factory=dict)
    reason: str | None = None


def ways_of(
    program: InitProgram, arrays: Sequence[Any], shardings: Sequence[Sharding | None]
) -> Ways:
    """Finds out how each leaf is made, for the arrays that the program is given."""
    used = [array for array, uses in zip(arrays, program.used, strict=True) if uses]
    reason = _reason(program)
    if reason is not None:
        _check_arrays(used)
        return Ways(ordinary=[whole(program, used)], reason=reason)
    consts = [outside(const) for const in program.consts]
    values = read_program(program.jaxpr, consts, list(map(outside, used)))
    ways = Ways()
    rest: dict[int, Value] = {}
    for number, (value, sharding) in enumerate(zip(values, shardings, strict=True)):
        _sort(number, value, sharding, ways, rest)
    _check_given(values, program)
    ways.ordinary.extend(ordinary_of(group, rest, program.fingerprints) for group in together(rest))
    ways.recipes.update(_recipes(ways))
    return ways


def _check_arrays(arrays: Sequence[Any]) -> None:
    abstract = [array for array in arrays if isinstance(array, jax.ShapeDtypeStruct)]
    if abstract:
        raise ValueError(f"the initialization depends on {abstract[0]}: pass an array")


def _check_given(values: Sequence[Value], program: InitProgram) -> None:
    """Raises ValueError where an array is needed that was given as a shape alone."""
    for leaf, value in zip(program.leaves, values, strict=True):
        for given in arrays_under(value):
            if isinstance(given, jax.ShapeDtypeStruct):
                raise ValueError(
                    f"{leaf.path} depends on the values of an argument that is given as "
                    f"{given}: pass an array"
                )


def _reason(program: InitProgram) -> str | None:
    if program.has_effects:
        return "it does something beside computing its results, such as printing"
    if program.foreign_keys:
        return f"its keys are of {program.foreign_keys}, not of threefry2x32"
    if program.draws and not getattr(jax.config, _PARTITIONABLE):
        return f"{_PARTITIONABLE} is off, and a number depends on the shape as a whole"
    return None


def _sort(
    number: int, value: Value, sharding: Sharding | None, ways: Ways, rest: dict[int, Value]
) -> None:
    if isinstance(value, Known | Keys | Given):
        ways.copied[number] = value
    elif isinstance(value, Drawn) and not value.size:
        ways.filled[number] = np.zeros((), value.dtype)
    elif (fill := fill_of(value)) is not None:
        ways.filled[number] = fill
    elif isinstance(value, Drawn) and value.random and _is_divisible(value, sharding):
        ways.drawn[number] = value
    else:
        rest[number] = value


def _is_divisible(value: Drawn, sharding: Sharding | None) -> bool:
    """Returns whether every device's part consists of whole axes of the segments."""
    if sharding is None:
        return True
    return bool(value.shape) and leading_axes(value.shape, len(value.segments)) is not None


def _recipes(ways: Ways) -> Recipes:
    """Finds the recipes of all that is drawn, together, so that they are as few as can be."""
    values = list(ways.drawn.values())
    values += [value for ordinary in ways.ordinary for value in ordinary.drawn]
    found = iter(recipes_of([node for value in values for node in value.segments]))
    recipes = {}
    for value in values:
        pairs = [next(found) for _ in value.segments]
        recipes[id(value)] = pairs[0][0], tuple(own for _, own in pairs)
    return recipes
