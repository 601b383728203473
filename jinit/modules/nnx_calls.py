"""Functions that are called with NNX's objects, as functions of arrays alone.

An NNX object is mutable: a call moves its statistics and counts its random numbers. Here such a
call is three steps, of which only the one in the middle is traced::

    apart = Apart(args, kwargs)       objects taken apart into their states      ctx.split
    returned = call(fn, apart)        objects made, fn called, taken apart       ctx.merge, split
    put_back(apart, returned)         what fn did to the objects is done to the  ctx.merge
                                      caller's: values, new attributes, aliases

A state that is an argument itself, as in ``lambda state, x: nnx.merge(graphdef, state)(x)``, is
taken for values: the function gets a copy, and has to return what it writes there, or
``modules/lost_state.py`` raises.

Invariant: a leaf of the state that ``fn`` did not write to does not pass through the traced
function's results, so that it is the caller's afterwards, bit for bit.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from jinit.modules.kinds import is_nnx_module, is_nnx_object, is_nnx_state, is_nnx_variable

__all__ = [
    "Apart",
    "Part",
    "Returned",
    "call",
    "is_object",
    "on_objects",
    "on_state",
    "taken_apart",
    "unwrapped",
    "with_states",
    "wrapped_as",
]

_TAG = "jinit"  # which of NNX's contexts remembers the objects


@functools.partial(jax.tree_util.register_dataclass, data_fields=["state"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Part:
    """The state of one NNX object, in its place: a State, or of a variable the variable.

    Attributes:
        state: The state.
    """

    state: Any


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["args", "kwargs"], meta_fields=["graphdef"]
)
@dataclasses.dataclass(frozen=True)
class Apart:
    """Arguments with the states of NNX's objects in their places.

    Attributes:
        args: The positional arguments.
        kwargs: The keywords.
        graphdef: What the objects are without their states; None where there are none.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    graphdef: Any = None

    @property
    def parts(self) -> list["Part"]:
        """The states of the objects, in order."""
        nodes = jax.tree.leaves((self.args, self.kwargs), is_leaf=_is_part)
        return [node for node in nodes if _is_part(node)]

    def states(self) -> Any:
        """Returns the states of all objects as one."""
        return _joint([node.state for node in self.parts])


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["outputs", "written"],
    meta_fields=["graphdef", "tree", "paths", "passed"],
)
@dataclasses.dataclass(frozen=True)
class Returned:
    """What a function returned, and what it did to the objects that it was called with.

    Attributes:
        outputs: What it returned, a ``_Made`` in the place of every object.
        written: The leaves of the states that it wrote to.
        graphdef: What the objects are now, and those that it returned.
        tree: The structure of their states.
        paths: The path of every leaf of them.
        passed: For every leaf the number of the given leaf that it still is, or None.
    """

    outputs: Any
    written: list[Any]
    graphdef: Any
    tree: Any
    paths: tuple[Any, ...]
    passed: tuple[int | None, ...]

    def map_written(self, function: Callable[[Any, Any], Any]) -> "Returned":
        """Returns the same, with a function of path and value applied to what was written."""
        paths = [path for path, n in zip(self.paths, self.passed, strict=True) if n is None]
        return dataclasses.replace(self, written=list(map(function, paths, self.written)))

    def with_states(self, given: int) -> Any:
        """Returns the outputs, with what was written of an object's state in the object's place.

        Args:
            given: How many objects the function was called with.
        """
        written = iter(self.written)
        leaves = [next(written) if number is None else None for number in self.passed]
        states = jax.tree.unflatten(self.tree, leaves)

        def stated(node: Any) -> Any:
            return states.get(given + node.number) if isinstance(node, _Made) else node

        return jax.tree.map(stated, self.outputs, is_leaf=lambda node: isinstance(node, _Made))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Made:
    """The place of an object among a function's outputs."""

    number: int


def is_object(value: Any) -> bool:
    """Returns whether a value is an object of NNX: a module, a variable, ``nnx.Rngs``."""
    return is_nnx_object(value) or is_nnx_variable(value)


def _is_object_or_state(value: Any) -> bool:
    return is_object(value) or is_nnx_state(value)


@contextlib.contextmanager
def taken_apart(
    args: Sequence[Any], kwargs: dict[str, Any], *, makes: bool = False
) -> Iterator[Apart]:
    """Takes arguments apart from their objects, which are remembered while the context lasts.

    Args:
        args: The positional arguments.
        kwargs: The keywords.
        makes: Whether a function that they are for may return objects although it is given none.
    """
    nodes, tree = jax.tree.flatten((tuple(args), kwargs), is_leaf=_is_object_or_state)
    objects = [node for node in nodes if is_object(node)]
    if not objects and not (makes and "flax.nnx" in sys.modules):
        yield Apart(tuple(args), kwargs)
        return
    from flax import nnx

    with nnx.update_context(_TAG):
        with nnx.split_context(_TAG) as context:
            graphdef, states = context.split(tuple(objects))
        parts = iter(_divided(states, len(objects)))
        filled = [next(parts) if is_object(node) else node for node in nodes]
        placed, named = jax.tree.unflatten(tree, filled)
        yield Apart(placed, named, graphdef)


def on_objects(
    run: Callable[[Apart], Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    makes: bool = False,
) -> Any:
    """Runs what takes arguments apart from their objects, and does to the objects what it did.

    Args:
        run: Returns of the arguments what ``call`` returned of them.
        args: The positional arguments.
        kwargs: The keywords.
        makes: Whether the function may return objects although it is given none.

    Returns:
        What the function that was called returned.
    """
    with taken_apart(args, kwargs, makes=makes) as apart:
        returned = run(apart)
        return returned if apart.graphdef is None else _put_back(apart, returned)


def on_state(function: Callable[[Any], Any], tree: Any) -> Any:
    """Applies a function of trees of arrays to a tree, or to a copy of an NNX module's state."""
    if not is_nnx_module(tree):
        return function(tree)
    from flax import nnx

    graphdef, state = nnx.split(tree)
    return nnx.merge(graphdef, function(state))


def call(fn: Callable[..., Any], apart: Apart) -> Any:
    """Calls a function with the objects made again.

    Returns:
        What it returned, or with objects a ``Returned``.
    """
    if apart.graphdef is None:
        return fn(*apart.args, **apart.kwargs)
    from flax import nnx

    states = apart.states()
    given = {id(leaf): number for number, leaf in enumerate(jax.tree.leaves(states))}
    with nnx.merge_context(_TAG, True) as context:
        objects = context.merge(apart.graphdef, states)
    made = iter(objects)
    args, kwargs = jax.tree.map(
        lambda node: next(made) if _is_part(node) else node,
        (apart.args, apart.kwargs),
        is_leaf=_is_part,
    )
    nodes, tree = jax.tree.flatten(fn(*args, **kwargs), is_leaf=is_object)
    returned = [node for node in nodes if is_object(node)]
    numbers = iter(range(len(returned)))
    places = [_Made(next(numbers)) if is_object(node) else node for node in nodes]
    with nnx.split_context(_TAG) as context:
        graphdef, after = context.split((*objects, *returned))
    leaves, structure = jax.tree_util.tree_flatten_with_path(after)
    passed = tuple(given.get(id(leaf)) for _, leaf in leaves)
    written = [leaf for (_, leaf), number in zip(leaves, passed, strict=True) if number is None]
    paths = tuple(path for path, _ in leaves)
    outputs = jax.tree.unflatten(tree, places)
    return Returned(outputs, written, graphdef, structure, paths, passed)


def _put_back(apart: Apart, returned: Returned) -> Any:
    """Does to the caller's objects what was done to those that were made of their states."""
    from flax import nnx

    count = len(apart.parts)
    given, written = jax.tree.leaves(apart.states()), iter(returned.written)
    leaves = [next(written) if number is None else given[number] for number in returned.passed]
    with nnx.merge_context(_TAG, False) as context:
        objects = context.merge(returned.graphdef, jax.tree.unflatten(returned.tree, leaves))
    return jax.tree.map(
        lambda node: objects[count + node.number] if isinstance(node, _Made) else node,
        returned.outputs,
        is_leaf=lambda node: isinstance(node, _Made),
    )


def with_states(tree: Any) -> Any:
    """Returns a tree with the states of NNX's modules in their places, which may hold cycles."""

    def stated(node: Any) -> Any:
        if not is_nnx_object(node):
            return node
        from flax import nnx

        return nnx.state(node)

    return jax.tree.map(stated, tree, is_leaf=is_object)


def unwrapped(tree: Any) -> Any:
    """Returns a tree with the bare states in the places of objects."""
    return jax.tree.map(lambda node: node.state if _is_part(node) else node, tree, is_leaf=_is_part)


def wrapped_as(tree: Any, like: Any) -> Any:
    """Returns a tree that was unwrapped as it was before."""
    nodes, structure = jax.tree.flatten(like, is_leaf=_is_part)
    pairs = zip(nodes, structure.flatten_up_to(tree), strict=True)
    return jax.tree.unflatten(
        structure, [Part(new) if _is_part(old) else new for old, new in pairs]
    )


def _is_part(node: Any) -> bool:
    return isinstance(node, Part)


def _joint(states: Sequence[Any]) -> Any:
    from flax import nnx

    return nnx.State(dict(enumerate(states)))


def _divided(states: Any, count: int) -> list[Any]:
    """Divides a joint state by objects; one without variables, or seen before, has none left."""
    from flax import nnx

    return [Part(states[n] if n in states else nnx.State({})) for n in range(count)]
