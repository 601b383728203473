"""How the elements of an array are computed, as data that a program is compiled for.

A recipe is what a ``Node`` is without its keys and without the numbers that differ between the
arrays that share it. The scale of an initializer is such a number, so that layers of every width
are drawn by one program::

    bits of 32   >> 9   | 0x3F800000   as float32   - 1   * 2   - 1   erf_inv   * scale
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jinit.fastinit.reading.values import Bits, Node, Number, Op

__all__ = ["Ingredients", "Recipe", "are_alike", "evaluate", "recipes_of"]


@dataclass(frozen=True)
class Recipe:
    """Instructions, each of which computes a value of those before it; the last is the result.

    Attributes:
        instructions: ``("bits", width)``, ``("number", dtype)`` for one that differs,
            ``("constant", dtype, bytes)``, or ``("apply", primitive, params, operands)``.
    """

    instructions: tuple[tuple[Any, ...], ...]

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self.instructions)

    @property
    def dtypes(self) -> list[np.dtype]:
        """The dtypes of the numbers that differ."""
        return [np.dtype(rest[0]) for kind, *rest in self.instructions if kind == "number"]

    @property
    def name(self) -> str:
        """What it draws, told by what it does to bits."""
        names = {details[0].name for kind, *details in self.instructions if kind == "apply"}
        if "erf_inv" in names:
            return "truncated normal" if "erf" in names else "normal"
        if names & {"lt", "le", "gt", "ge", "eq", "ne"}:
            return "selected by random bits"
        return "random bits" if names <= {"convert_element_type"} else "uniform"

    def count(self, kind: str) -> int:
        """Counts instructions of a kind."""
        return sum(instruction[0] == kind for instruction in self.instructions)


@dataclass(frozen=True)
class Ingredients:
    """What a node has beside its recipe, in the order of the instructions.

    Attributes:
        keys: The keys of its bits.
        numbers: The numbers that differ.
    """

    keys: tuple[tuple[int, int], ...]
    numbers: tuple[np.ndarray, ...]


def recipes_of(nodes: Sequence[Node]) -> list[tuple[Recipe, Ingredients]]:
    """Divides nodes into recipes and what goes into them, so that as few recipes do as can.

    A number stays in the recipe where all nodes that are alike have the same one, unless it is
    the scale, the last factor; and where XLA makes other numbers of it, by a logarithm say: it
    is the compiler that has to see those, so that they are rounded as in any other program.
    """
    drafts = [_Draft(node) for node in nodes]
    alike: dict[Any, list[_Draft]] = {}
    for draft in drafts:
        alike.setdefault(draft.key, []).append(draft)
    free = {key: _differing(group) for key, group in alike.items()}
    return [draft.divided(free[draft.key]) for draft in drafts]


def are_alike(nodes: Sequence[Node]) -> bool:
    """Returns whether nodes have one recipe, whichever of its numbers differ."""
    return len({_Draft(node).key for node in nodes}) == 1


def _differing(group: list["_Draft"]) -> frozenset[int]:
    first = group[0]
    places = range(len(first.numbers))
    return frozenset(
        place
        for place in places
        if place == first.scale
        or any(draft.numbers[place].tobytes() != first.numbers[place].tobytes() for draft in group)
    )


class _Draft:
    """A node's instructions in order, each node in them once."""

    def __init__(self, root: Node) -> None:
        self.instructions: list[tuple[Any, ...]] = []
        self.keys: list[tuple[int, int]] = []
        self.numbers: list[np.ndarray] = []
        self.scale: int | None = None
        self._places: dict[int, int] = {}
        scale = _scale(root)
        self._visit(root, root.random)
        if scale is not None:
            self.scale = self.instructions[self._places[id(scale)]][2]
        self.key = tuple(self.instructions)

    def _visit(self, node: Node, free: bool) -> int:
        """Writes a node down after its operands; its numbers may differ where ``free``."""
        if id(node) not in self._places:
            instruction = self._instruction(node, free)
            self._places[id(node)] = len(self.instructions)
            self.instructions.append(instruction)
        return self._places[id(node)]

    def _instruction(self, node: Node, free: bool) -> tuple[Any, ...]:
        if isinstance(node, Bits):
            self.keys.append(node.key)
            return "bits", node.width
        if isinstance(node, Op):
            operands = tuple(self._visit(operand, node.random) for operand in node.operands)
            return "apply", node.primitive, node.params, operands
        if not free:
            return "constant", node.value.dtype, node.value.tobytes()
        self.numbers.append(node.value)
        return "number", node.value.dtype, len(self.numbers) - 1

    def divided(self, free: frozenset[int]) -> tuple[Recipe, Ingredients]:
        """Returns the recipe in which the numbers at these places differ, and what goes in."""

        def settled(instruction: tuple[Any, ...]) -> tuple[Any, ...]:
            kind, *rest = instruction
            if kind != "number":
                return instruction
            dtype, place = rest
            if place in free:
                return kind, dtype
            return "constant", dtype, self.numbers[place].tobytes()

        recipe = Recipe(tuple(map(settled, self.instructions)))
        return recipe, Ingredients(tuple(self.keys), tuple(self.numbers[n] for n in sorted(free)))


def _scale(node: Node) -> Number | None:
    """Returns the last factor on the way from the bits to a node."""
    while isinstance(node, Op):
        numbers = [operand for operand in node.operands if isinstance(operand, Number)]
        if node.primitive.name == "mul" and numbers:
            return numbers[0]
        random = [operand for operand in node.operands if operand.random]
        if len(random) != 1:
            return None
        (node,) = random
    return None


def evaluate(recipe: Recipe, bits: Callable[[int, int], Any], numbers: Sequence[Any]) -> jax.Array:
    """Computes what a recipe says.

    Args:
        recipe: The recipe.
        bits: Draws, given which of the keys and the width.
        numbers: The numbers that differ.
    """
    rest, drawn, values = iter(numbers), 0, []
    for kind, *details in recipe.instructions:
        if kind == "bits":
            values.append(bits(drawn, details[0]))
            drawn += 1
        elif kind == "number":
            values.append(next(rest))
        elif kind == "constant":
            values.append(np.frombuffer(details[1], details[0])[0])
        else:
            primitive, params, places = details
            values.append(_bind(primitive, dict(params), [values[place] for place in places]))
    return values[-1]


def _bind(primitive: Any, params: dict[str, Any], operands: list[Any]) -> jax.Array:
    shape = jnp.broadcast_shapes(*map(np.shape, operands))
    return primitive.bind(*(jnp.broadcast_to(operand, shape) for operand in operands), **params)
