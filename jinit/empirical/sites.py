"""Where parameters meet data: the layers of a traced function, whatever framework wrote it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax.numpy as jnp
from jax.extend import core as jex

from jinit.empirical.degrees import Degree, Degrees, combine, degrees_of
from jinit.empirical.numbers import is_float
from jinit.empirical.shapes import ProductShape, shape_of_product
from jinit.tracing import PRODUCTS, Frame, Path, TracedFunction, aval_of, propagate, sub_jaxprs

__all__ = ["Layer", "Survey", "survey"]

SiteKind = Literal["linear", "embedding", "bias", "gain", "other", "opaque"]

_LOOKUPS = frozenset({"gather", "dynamic_slice"})
_SUMS = frozenset({"add", "add_any", "sub"})
_PASS_THROUGH = frozenset({
    "broadcast_in_dim", "convert_element_type", "copy", "div", "expand_dims", "mul", "name", "neg",
    "optimization_barrier", "reshape", "sharding_constraint", "squeeze", "transpose",
})  # fmt: skip
_ENTERED = frozenset({"jit", "remat", "scan", "cond"})


@dataclass(frozen=True)
class _Tag:
    """What is known of a value.

    Attributes:
        data: Whether it depends on the inputs.
        degrees: Its degrees in the parameters, for a value free of data.
        reached: The leaves it depends on, as bits.
        pending: The linear site whose result it is, at most reshaped or multiplied by a
            constant and not yet used elsewhere: a bias added to it belongs to that layer.
    """

    data: bool = False
    degrees: Degrees = field(default_factory=dict)
    reached: int = 0
    pending: Path | None = None


@dataclass(frozen=True)
class _Site:
    """An equation that mixes data and parameters."""

    path: Path
    kind: SiteKind
    leaves: Degrees
    operands: tuple[int, ...]
    differentiable: bool
    frames: tuple[Frame, ...]
    shape: ProductShape
    adds_to: Path | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(frame.length for frame in self.frames if frame.kind == "scan")


@dataclass(frozen=True)
class Layer:
    """One row of the report: a site, or a linear site with the bias added to it.

    Attributes:
        head: Where the parameters meet the input.
        tail: Where the layer's output is complete: the bias's sum, or ``head``.
        kind: ``linear``, ``embedding``, ``bias`` and ``gain`` (those that stand alone),
            ``other`` or ``opaque``.
        leaves: The head's degree in each of its leaves.
        bias: The tail's, where a bias belongs to the layer.
        operands: Which operands of the head hold parameters.
        differentiable: Whether the head's input is a float, so that it has a gradient.
        lengths: The lengths of the enclosing scans.
        shape: Its fans, and the axis of its output along which the units lie.
        carrier: The leaf that is rescaled, or the first of a group of them; or None.
        reason: Why none is.
        shared: Whether the carrier serves several uses, or iterations of a loop, at once.
    """

    head: Path
    tail: Path
    kind: SiteKind
    leaves: tuple[tuple[int, Degree], ...]
    operands: tuple[int, ...]
    differentiable: bool
    lengths: tuple[int, ...]
    shape: ProductShape
    bias: tuple[tuple[int, Degree], ...] = ()
    carrier: int | None = None
    reason: str = ""
    shared: bool = False

    @property
    def leaf(self) -> int:
        """The leaf that the layer is named by: its carrier, or its first one."""
        return self.leaves[0][0] if self.carrier is None else self.carrier

    def on_inputs(self, values: Sequence[Any], fn: Callable[[Any], Any]) -> list[Any]:
        """Applies a function to those of the head's float operands that hold no parameters."""
        return [
            value if number in self.operands or not is_float(value) else fn(value)
            for number, value in enumerate(values)
        ]

    @property
    def measured(self) -> bool:
        """Whether the evaluation passes through the layer, so that it can be measured."""
        return self.kind != "opaque"

    @property
    def scaled(self) -> tuple[tuple[int, Degree], ...]:
        """The leaves that take the layer's scale: the carrier, its group, the bias with it."""
        if self.carrier is None:
            return ()
        own = dict(self.leaves)[self.carrier]
        return ((self.carrier, own), *((leaf, own) for leaf in self.joined), *self.bias)

    @property
    def joined(self) -> tuple[int, ...]:
        """The leaves that were joined to the carrier, and take the same scale."""
        if self.carrier is None:
            return ()
        return tuple(sorted(dict(self.leaves)[self.carrier].group - {self.carrier}))


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
    """Dataflow rules that find the sites."""

    def literal(self, value: Any) -> _Tag:
        return _Tag()

    def shared(self, tag: _Tag) -> _Tag:
        return replace(tag, pending=None)

    def join(self, first: _Tag, second: _Tag) -> _Tag:
        return self.choose(_Tag(), [first, second])

    def choose(self, predicate: _Tag, tags: Sequence[_Tag]) -> _Tag:
        reached = _reached([predicate, *tags])
        if predicate.data or any(tag.data for tag in tags):
            return _Tag(data=True, reached=reached)
        if all(tag.degrees == tags[0].degrees for tag in tags):
            return _Tag(degrees=tags[0].degrees, reached=reached)
        return _Tag(degrees=combine([t.degrees for t in tags], lambda d: None), reached=reached)

    def sliced(self, tag: _Tag, level: int) -> _Tag:
        slices = {
            leaf: replace(d, loops=(*d.loops, level)) if d.whole else d
            for leaf, d in tag.degrees.items()
        }
        return replace(tag, degrees=slices, pending=None)

    def carried(self, tag: _Tag, level: int) -> _Tag:
        degrees = {leaf: d.outside(level, stacked=False) for leaf, d in tag.degrees.items()}
        return replace(tag, degrees=degrees)

    def stacked(self, tag: _Tag, level: int) -> _Tag:
        degrees = {leaf: d.outside(level, stacked=True) for leaf, d in tag.degrees.items()}
        return replace(tag, degrees=degrees, pending=None)

    def equation(
        self, equation: jex.JaxprEqn, tags: Sequence[_Tag], frames: tuple[Frame, ...], path: Path
    ) -> tuple[list[_Tag], _Site | None]:
        if equation.primitive.name == "optimization_barrier":
            return list(tags), None
        reached, count = _reached(tags), len(equation.outvars)
        if not any(tag.data for tag in tags):
            degrees = degrees_of(equation, [tag.degrees for tag in tags])
            return [_Tag(degrees=degrees, reached=reached)] * count, None
        if not any(tag.degrees for tag in tags):
            pending = _passed_on(equation, tags)
            return [_Tag(data=True, reached=reached, pending=pending)] * count, None
        site = _site(equation, tags, frames, path)
        pending = path if site.kind == "linear" else None
        return [_Tag(data=True, reached=reached, pending=pending)] * count, site


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


def _is_float(atom: Any) -> bool:
    return jnp.issubdtype(aval_of(atom).dtype, jnp.inexact)


def _site(
    equation: jex.JaxprEqn, tags: Sequence[_Tag], frames: tuple[Frame, ...], path: Path
) -> _Site:
    operands = tuple(index for index, tag in enumerate(tags) if tag.degrees)
    kind = _kind(equation, operands, len(tags), frames)
    adds_to = None
    if kind == "bias":
        (summand,) = (tag for tag in tags if tag.data)
        adds_to = summand.pending
    leaves = combine([tags[index].degrees for index in operands], sum)
    differentiable = any(
        tag.data and _is_float(atom) for tag, atom in zip(tags, equation.invars, strict=True)
    )
    shape = shape_of_product(equation, operands[0])
    return _Site(path, kind, leaves, operands, differentiable, frames, shape, adds_to)


def _kind(
    equation: jex.JaxprEqn, operands: tuple[int, ...], count: int, frames: tuple[Frame, ...]
) -> SiteKind:
    name = equation.primitive.name
    if sub_jaxprs(equation) or any(f.kind not in _ENTERED for f in frames):
        return "opaque"
    if not _is_float(equation.outvars[0]):
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


def survey(traced: TracedFunction, trainable: Sequence[bool]) -> Survey:
    """Finds the layers of a traced function whose first inputs are its variables.

    Args:
        traced: The function; the inputs that follow its variables are data.
        trainable: For each variable whether it is a parameter; the others, such as batch
            statistics, count as constants.

    Returns:
        The layers, and which leaves no output depends on.
    """
    parameters = [
        _Tag(degrees={leaf: Degree(whole=True)}, reached=1 << leaf)
        if flag and jnp.issubdtype(aval.dtype, jnp.inexact)
        else _Tag()
        for leaf, (aval, flag) in enumerate(zip(traced.in_avals, trainable, strict=False))
    ]
    data = [_Tag(data=True)] * (len(traced.in_avals) - len(trainable))
    outputs, sites = propagate(traced.jaxpr, [*parameters, *data], _Rules())
    run = {path: site for path, site in sites.items() if 0 not in site.lengths}
    layers = _with_carriers(_group(run))
    reached = _reached(outputs)
    unused = [i for i, tag in enumerate(parameters) if tag.reached and not reached >> i & 1]
    entered = [path for path, site in sites.items() if site.kind != "opaque"]
    prefixes = frozenset(path[:n] for path in entered for n in range(1, len(path)))
    return Survey(tuple(layers), prefixes, tuple(unused), bool(reached))


def _group(sites: Mapping[Path, _Site]) -> list[Layer]:
    """Joins to every linear site the bias that is added to its result."""
    users = Counter(leaf for site in sites.values() for leaf in site.leaves)
    biases: dict[Path, _Site] = {}
    for site in sites.values():
        head = sites.get(site.adds_to) if site.adds_to is not None else None
        if head is not None and _belongs(site, head, users):
            biases[head.path] = site
    grouped = {bias.path for bias in biases.values()}
    return [
        _layer(site, biases.get(site.path)) for site in sites.values() if site.path not in grouped
    ]


def _belongs(bias: _Site, head: _Site, users: Counter[int]) -> bool:
    """A bias is its layer's own if it scales with the weight and serves no other layer."""
    own = all(d.degree not in (None, 0.0) and users[leaf] == 1 for leaf, d in bias.leaves.items())
    weights = [d.loops for d in head.leaves.values()]
    return own and all(d.loops in weights for d in bias.leaves.values())


def _layer(site: _Site, bias: _Site | None) -> Layer:
    return Layer(
        head=site.path,
        tail=site.path if bias is None else bias.path,
        kind=site.kind,
        leaves=tuple(site.leaves.items()),
        operands=site.operands,
        differentiable=site.differentiable,
        lengths=site.lengths,
        shape=site.shape,
        bias=() if bias is None else tuple(bias.leaves.items()),
    )


_REASONS: Mapping[SiteKind, str] = {
    "bias": "a bias on its own",
    "gain": "a gain",
    "other": "not linear in the parameter",
    "opaque": "inside an operation that is not entered",
}


def _with_carriers(layers: Sequence[Layer]) -> list[Layer]:
    """Chooses for every linear layer and embedding the leaf that takes its scale."""
    uses = Counter(leaf for layer in layers for leaf, _ in layer.leaves)
    chosen = []
    for layer in layers:
        if layer.kind in _REASONS:
            chosen.append(replace(layer, reason=_REASONS[layer.kind]))
            continue
        candidates = [
            (leaf, d)
            for leaf, d in layer.leaves
            if d.degree not in (None, 0.0) and all(uses[member] == 1 for member in d.group)
        ]
        if not candidates:
            reason = "not homogeneous in any of its parameters"
            chosen.append(replace(layer, reason=reason))
            continue
        leaf, degree = min(candidates, key=lambda item: (uses[item[0]], len(item[1].group)))
        shared = uses[leaf] > 1 or len(degree.loops) < len(layer.lengths)
        chosen.append(replace(layer, carrier=leaf, shared=shared))
    return chosen
