"""Where parameters meet data: the layers of a traced function, whatever framework wrote it."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jax.extend import core as jex

from jinit._arithmetic import is_float_dtype
from jinit.layers.degrees import (
    SAME,
    SMALL,
    Degree,
    Degrees,
    combine,
    degrees_of,
    hands_on,
    joined,
)
from jinit.layers.fans import shape_of_product
from jinit.layers.layer import Layer, LayerKind, Meeting, layers_of
from jinit.tracing import (
    PRODUCTS,
    Frame,
    Path,
    TracedFunction,
    holds_float,
    propagate,
    sub_jaxprs,
)

__all__ = ["Layer", "Survey", "survey"]

_LOOKUPS = frozenset({"gather", "dynamic_slice"})
_SUMS = frozenset({"add", "add_any", "sub"})
_SPREADS = frozenset({"broadcast_in_dim", "reshape", "squeeze", "transpose"})
_PASS_THROUGH = _SPREADS | SAME | {"div", "expand_dims", "mul"}
_ENTERED = frozenset({"jit", "remat", "scan", "cond"})


@dataclass(frozen=True)
class _Tag:
    """What is known of a value.

    Attributes:
        data: Whether it depends on the inputs.
        degrees: Its degrees in the parameters, for a value free of data.
        reached: The leaves it depends on, as bits.
        fill: The number that fills it, where that is known and small.
        pending: The linear meeting whose result it is, at most reshaped or multiplied by a
            constant and not yet used elsewhere: a bias added to it belongs to that layer.
    """

    data: bool = False
    degrees: Degrees = field(default_factory=dict)
    reached: int = 0
    fill: float | None = None
    pending: Path | None = None


@dataclass(frozen=True)
class Survey:
    """What the analysis of a function found.

    Attributes:
        layers: Every layer, in evaluation order.
        enter: The paths of the equations whose sub-jaxprs hold a layer.
        unused: The leaves that no output depends on.
        reached: Whether any output depends on a parameter.
    """

    layers: tuple[Layer, ...]
    enter: frozenset[Path]
    unused: tuple[int, ...]
    reached: bool


class _Rules:
    """Dataflow rules that find the meetings.

    Of ``y = reshape(x @ w) + b; z = tanh(y)``, where x is an input::

        w          degrees {w: 1}
        x @ w      data, a linear meeting at (0,), pending=(0,)
        reshape    data, still pending=(0,)
        y          data, a meeting of kind bias whose adds_to is (0,), so it is that layer's
        z          data; a bias that is added now stands alone
    """

    def literal(self, value: Any) -> _Tag:
        return _Tag(fill=_small(value))

    def shared(self, tag: _Tag) -> _Tag:
        return replace(tag, pending=None)

    def join(self, first: _Tag, second: _Tag) -> _Tag:
        return self._one_of(_Tag(), [first, second], _alike)

    def choose(self, predicate: _Tag, tags: Sequence[_Tag]) -> _Tag:
        # which branch is taken may hang on the inputs, but not on how large the parameters are
        sizes = any(d.degree != 0 for d in predicate.degrees.values())
        own = predicate.data and predicate.reached & _reached(tags)
        return self._one_of(predicate, tags, _alike if sizes or own else joined)

    def _one_of(
        self,
        predicate: _Tag,
        tags: Sequence[_Tag],
        combined: Callable[[Sequence[Degrees]], Degrees],
    ) -> _Tag:
        reached = _reached([predicate, *tags])
        free = not any(tag.data for tag in tags)
        if not free or (predicate.data and not any(tag.degrees for tag in tags)):
            return _Tag(data=True, reached=reached)
        degrees = combined([tag.degrees for tag in tags if tag.degrees or tag.fill != 0])
        return _Tag(degrees=degrees, reached=reached)

    def sliced(self, tag: _Tag, level: int) -> _Tag:
        slices = {leaf: d.inside(level) for leaf, d in tag.degrees.items()}
        return replace(tag, degrees=slices, pending=None)

    def carried(self, tag: _Tag, level: int) -> _Tag:
        degrees = {leaf: d.outside(level, stacked=False) for leaf, d in tag.degrees.items()}
        return replace(tag, degrees=degrees)

    def stacked(self, tag: _Tag, level: int) -> _Tag:
        degrees = {leaf: d.outside(level, stacked=True) for leaf, d in tag.degrees.items()}
        return replace(tag, degrees=degrees, pending=None)

    def equation(
        self, equation: jex.JaxprEqn, tags: Sequence[_Tag], frames: tuple[Frame, ...], path: Path
    ) -> tuple[list[_Tag], Meeting | None]:
        reached, count = _reached(tags), len(equation.outvars)
        if hands_on(equation):
            return list(tags), None
        if equation.primitive.name in PRODUCTS:
            tags = [_input_if_zero(tag) for tag in tags]
        # Operands free of data have degrees; of data alone there is none; both together meet.
        if not any(tag.data for tag in tags):
            fills = [tag.fill for tag in tags]
            several = degrees_of(equation, [tag.degrees for tag in tags], fills)
            fill = fills[0] if equation.primitive.name in _SPREADS else None
            return [_Tag(degrees=degrees, reached=reached, fill=fill) for degrees in several], None
        if not any(tag.degrees for tag in tags):
            pending = _passed_on(equation, tags)
            return [_Tag(data=True, reached=reached, pending=pending)] * count, None
        meeting = _meeting(equation, tags, frames, path)
        pending = path if meeting.kind == "linear" else None
        return [_Tag(data=True, reached=reached, pending=pending)] * count, meeting


def _input_if_zero(tag: _Tag) -> _Tag:
    """Takes a constant of zeros for an input: the first state of a recurrence, not a weight."""
    return replace(tag, data=True) if tag.fill == 0 and not tag.degrees else tag


def _alike(several: Sequence[Degrees]) -> Degrees:
    """Returns degrees that all have, and else that none is known."""
    if all(degrees == several[0] for degrees in several):
        return several[0] if several else {}
    return combine(several, lambda degrees: None)


def _small(value: Any) -> float | None:
    """Returns the size of a number that is small."""
    known = isinstance(value, bool | int | float | complex | np.ndarray | np.generic)
    size = float(np.abs(value)) if known and np.ndim(value) == 0 else math.inf
    return size if size <= SMALL else None


def _reached(tags: Sequence[_Tag]) -> int:
    bits = 0
    for tag in tags:
        bits |= tag.reached
    return bits


def _passed_on(equation: jex.JaxprEqn, tags: Sequence[_Tag]) -> Path | None:
    data = [tag for tag in tags if tag.data]
    scaled_by_constant = equation.primitive.name != "div" or tags[0].data
    if equation.primitive.name in _PASS_THROUGH and len(data) == 1 and scaled_by_constant:
        return data[0].pending
    return None


def _meeting(
    equation: jex.JaxprEqn, tags: Sequence[_Tag], frames: tuple[Frame, ...], path: Path
) -> Meeting:
    operands = tuple(index for index, tag in enumerate(tags) if tag.degrees)
    kind = _kind(equation, operands, len(tags), frames)
    adds_to = None
    if kind == "bias":
        (summand,) = (tag for tag in tags if tag.data)
        adds_to = summand.pending
    leaves = combine([tags[index].degrees for index in operands], sum)
    differentiable = any(
        tag.data and holds_float(atom) for tag, atom in zip(tags, equation.invars, strict=True)
    )
    shape = shape_of_product(equation, operands[0])
    return Meeting(path, kind, leaves, operands, differentiable, frames, shape, adds_to)


def _kind(
    equation: jex.JaxprEqn, operands: tuple[int, ...], count: int, frames: tuple[Frame, ...]
) -> LayerKind:
    name = equation.primitive.name
    if sub_jaxprs(equation) or any(f.kind not in _ENTERED for f in frames):
        return "opaque"
    if not holds_float(equation.outvars[0]):
        return "other"
    if name in PRODUCTS:
        return "linear"
    if name in _LOOKUPS and operands == (0,):
        return "embedding"
    if name in _SUMS and count == 2:
        return "bias"
    if name == "mul" or (name == "div" and operands == (1,)):
        return "gain"
    return "other"


def survey(
    traced: TracedFunction, trainable: Sequence[bool], zeros: Collection[int] = ()
) -> Survey:
    """Finds the layers of a traced function whose first inputs are its variables.

    Args:
        traced: The function; the inputs that follow its variables are data.
        trainable: For each variable whether it is a parameter; the others, such as batch
            statistics, count as constants.
        zeros: The variables that are known to hold nothing but zeros.

    Returns:
        The layers, and which leaves no output depends on.
    """
    parameters = [
        _Tag(degrees={leaf: Degree(axes=tuple(range(len(aval.shape))))}, reached=1 << leaf)
        if flag and is_float_dtype(aval.dtype)
        else _Tag()
        for leaf, (aval, flag) in enumerate(zip(traced.in_avals, trainable, strict=False))
    ]
    data = [_Tag(data=True)] * (len(traced.in_avals) - len(trainable))
    outputs, meetings = propagate(traced.jaxpr, [*parameters, *data], _Rules())
    run = {path: meeting for path, meeting in meetings.items() if 0 not in meeting.lengths}
    layers = layers_of(run, frozenset(zeros))
    reached = _reached(outputs)
    unused = [i for i, tag in enumerate(parameters) if tag.reached and not reached >> i & 1]
    entered = [path for path, meeting in meetings.items() if meeting.kind != "opaque"]
    prefixes = frozenset(path[:n] for path in entered for n in range(1, len(path)))
    return Survey(tuple(layers), prefixes, tuple(unused), bool(reached))
