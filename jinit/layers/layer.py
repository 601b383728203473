"""From the places where parameters meet data to layers: a weight with its bias."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jinit._arithmetic import is_float
from jinit.layers.degrees import Degree, Degrees, common_prefix
from jinit.layers.fans import ProductShape
from jinit.tracing import Frame, Path

__all__ = ["Layer", "LayerKind", "Meeting", "layers_of"]

LayerKind = Literal["linear", "embedding", "bias", "gain", "other", "opaque"]


@dataclass(frozen=True)
class Meeting:
    """An equation that mixes data and parameters."""

    path: Path
    kind: LayerKind
    leaves: Degrees
    operands: tuple[int, ...]
    differentiable: bool
    frames: tuple[Frame, ...]
    shape: ProductShape
    adds_to: Path | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of the enclosing scans."""
        return tuple(frame.length for frame in self.frames if frame.kind == "scan")


@dataclass(frozen=True)
class Layer:
    """One row of the report: a meeting, or a linear one with the bias added to it.

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
        shared: Whether the carrier serves several uses, or iterations of a loop, at once, or
            takes one scale with the weight of another layer.
        scaled: The leaves that take the layer's scale, the carrier first: its group, the bias,
            and what takes one scale with any of them in other layers. With each the power of
            the leaf's own scale that the layer's output is multiplied by.
        joined: The weights among them other than the carrier.
    """

    head: Path
    tail: Path
    kind: LayerKind
    leaves: tuple[tuple[int, Degree], ...]
    operands: tuple[int, ...]
    differentiable: bool
    lengths: tuple[int, ...]
    shape: ProductShape
    bias: tuple[tuple[int, Degree], ...] = ()
    carrier: int | None = None
    reason: str = ""
    shared: bool = False
    scaled: tuple[tuple[int, Degree], ...] = ()
    joined: tuple[int, ...] = ()

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


_REASONS: Mapping[LayerKind, str] = {
    "bias": "a bias on its own",
    "gain": "a gain",
    "other": "not linear in the parameter",
    "opaque": "inside an operation that is not entered",
}


def layers_of(
    meetings: Mapping[Path, Meeting],
    zeros: frozenset[int] = frozenset(),
    alone: frozenset[int] = frozenset(),
) -> list[Layer]:
    """Joins to every linear meeting the bias that is added to its result, and finds the scales.

    Args:
        meetings: Where parameters meet data.
        zeros: The leaves that are known to hold nothing but zeros.
        alone: The biases that belong to no layer.
    """
    meetings = _agreeing(meetings)
    layers = _with_carriers(_grouped(meetings, _biases(meetings, alone)))
    stuck = _stuck(layers)
    return layers_of(meetings, zeros, alone | stuck) if stuck else _Ties(layers, zeros).tied()


def _agreeing(meetings: Mapping[Path, Meeting]) -> dict[Path, Meeting]:
    """Leaves scans out that slice a leaf along other axes than other scans do."""
    places: dict[int, list[tuple[int, ...]]] = {}
    for meeting in meetings.values():
        for leaf, d in meeting.leaves.items():
            places.setdefault(leaf, []).append(d.places)
    depths = {leaf: _agreed(several) for leaf, several in places.items()}
    return {
        path: replace(meeting, leaves={x: d.within(depths[x]) for x, d in meeting.leaves.items()})
        for path, meeting in meetings.items()
    }


def _agreed(several: Sequence[tuple[int, ...]]) -> int:
    """Returns how many axes can be taken, such that all uses begin with them or by fewer."""
    longest = max(several, key=len)
    return min(
        (len(common_prefix([p, longest])) for p in several if p != longest[: len(p)]),
        default=len(longest),
    )


def _biases(meetings: Mapping[Path, Meeting], alone: frozenset[int]) -> dict[Path, Meeting]:
    """Finds by linear meeting the bias that belongs to it: one that serves such alone."""
    found = {
        path: meeting
        for path, meeting in meetings.items()
        if _may_belong(meeting, meetings) and not alone & meeting.leaves.keys()
    }
    while True:  # one that is left out makes its leaves others', which may leave out more
        others = {leaf for path, s in meetings.items() if path not in found for leaf in s.leaves}
        kept = {
            path: meeting for path, meeting in found.items() if not others & meeting.leaves.keys()
        }
        if len(kept) == len(found):
            return {
                meeting.adds_to: meeting
                for meeting in found.values()
                if meeting.adds_to is not None
            }
        found = kept


def _may_belong(bias: Meeting, meetings: Mapping[Path, Meeting]) -> bool:
    """A bias can be its layer's own if it scales."""
    scales = all(d.degree not in (None, 0.0) for d in bias.leaves.values())
    return bias.adds_to is not None and bias.adds_to in meetings and scales


def _grouped(meetings: Mapping[Path, Meeting], biases: Mapping[Path, Meeting]) -> list[Layer]:
    taken = {bias.path for bias in biases.values()}
    return [_layer(s, biases.get(s.path)) for s in meetings.values() if s.path not in taken]


def _layer(meeting: Meeting, bias: Meeting | None) -> Layer:
    return Layer(
        head=meeting.path,
        tail=meeting.path if bias is None else bias.path,
        kind=meeting.kind,
        leaves=tuple(meeting.leaves.items()),
        operands=meeting.operands,
        differentiable=meeting.differentiable,
        lengths=meeting.lengths,
        shape=meeting.shape,
        bias=() if bias is None else tuple(bias.leaves.items()),
    )


def _with_carriers(layers: Sequence[Layer]) -> list[Layer]:
    """Chooses for every linear layer and embedding the leaf that takes its scale."""
    uses = Counter(leaf for layer in layers for leaf, _ in layer.leaves)
    return [_with_carrier(layer, uses) for layer in layers]


def _with_carrier(layer: Layer, uses: Counter[int]) -> Layer:
    if layer.kind in _REASONS:
        return replace(layer, reason=_REASONS[layer.kind])
    candidates = [
        (leaf, d)
        for leaf, d in layer.leaves
        if d.degree not in (None, 0.0) and all(uses[member] == 1 for member in d.group)
    ]
    if not candidates:
        return replace(layer, reason=_why_not(layer))
    leaf, degree = min(candidates, key=lambda item: _rank(*item, uses))
    shared = uses[leaf] > 1 or len(degree.loops) < len(layer.lengths)
    return replace(layer, carrier=leaf, shared=shared)


def _why_not(layer: Layer) -> str:
    if all(d.degree == 0.0 for _, d in layer.leaves):
        return "the scale of its parameters cancels"
    return "not homogeneous in any of its parameters"


def _rank(leaf: int, degree: Degree, uses: Counter[int]) -> tuple[float, ...]:
    """Prefers the leaf with the fewest uses, and of a group the one that is a term by itself."""
    return uses[leaf], len(degree.group), (degree.degree or 0.0) if degree.group else 0.0


def _stuck(layers: Sequence[Layer]) -> frozenset[int]:
    """Returns the biases of several layers of which one is not scaled."""
    uses = Counter(leaf for layer in layers for leaf, _ in layer.bias)
    return frozenset(
        leaf
        for layer in layers
        if layer.carrier is None
        for leaf, _ in layer.bias
        if uses[leaf] > 1
    )


def _users(leaves: Iterable[Iterable[int]]) -> dict[int, list[int]]:
    """Lists by leaf the layers that have it."""
    users: dict[int, list[int]] = {}
    for number, several in enumerate(leaves):
        for leaf in several:
            users.setdefault(leaf, []).append(number)
    return users


class _Ties:
    """Which leaves take one scale, since a layer has them both, or layers that share one of them.

    Within such a class one number s stands for all: a layer's output is multiplied by ``s**k``,
    a leaf by ``s**e``, and ``k = e * degree`` wherever a layer has a leaf. In
    ``(x @ w) @ (w * w) + b`` the first layer has k = 1, hence w has e = 1; in the second one w is
    of degree 2, hence k = 2; there b is of degree 1, hence e = 2.

    A bias of zeros scales with anything, so it ties no layers to each other.

    Args:
        layers: The layers.
        zeros: The leaves that are known to hold nothing but zeros.
    """

    def __init__(self, layers: Sequence[Layer], zeros: frozenset[int]) -> None:
        self.layers, self.zeros = layers, zeros
        self.own = [self._own(layer) for layer in layers]
        self.users = _users(own.keys() for own in self.own)
        self.biased = _users(dict(layer.bias).keys() for layer in layers)
        self.exponent: dict[int, float] = {}
        self.powers = [1.0] * len(layers)
        self.class_of: list[list[int]] = [[] for _ in layers]
        for number, own in enumerate(self.own):
            if own and not self.class_of[number]:
                self._spread(number)

    def _own(self, layer: Layer) -> dict[int, Degree]:
        """Returns the leaves that scale a layer, the carrier first."""
        if layer.carrier is None:
            return {}
        leaves = dict(layer.leaves)
        group = sorted(leaves[layer.carrier].group - {layer.carrier})
        biases = {leaf: d for leaf, d in layer.bias if leaf not in self.zeros}
        return {leaf: leaves[leaf] for leaf in (layer.carrier, *group)} | biases

    def _spread(self, first: int) -> None:
        """Finds the class of a layer, and what s is raised to in it."""
        members, waiting, seen = self.class_of[first], [first], {first}
        while waiting:
            number = waiting.pop()
            members.append(number)
            self.class_of[number] = members
            known = [leaf for leaf in self.own[number] if leaf in self.exponent]
            if known:
                degree = self.own[number][known[0]].degree or 1.0
                self.powers[number] = self.exponent[known[0]] * degree
            for leaf, degree in self.own[number].items():
                self.exponent.setdefault(leaf, self.powers[number] / (degree.degree or 1.0))
            for other in sorted({n for leaf in self.own[number] for n in self.users[leaf]} - seen):
                seen.add(other)
                waiting.append(other)

    def tied(self) -> list[Layer]:
        """Returns the layers with what they scale."""
        return [
            self._tied(number) if self.own[number] else layer
            for number, layer in enumerate(self.layers)
        ]

    def _loops(self, number: int) -> tuple[int, ...]:
        """Returns the loops over which a layer's scale may vary."""
        several = [
            degree.loops
            for member in self.class_of[number]
            if len(self.own[member]) > 1 or member == number
            for degree in self.own[member].values()
        ]
        return common_prefix(several)

    def _tied(self, number: int) -> Layer:
        layer, members = self.layers[number], sorted(self.class_of[number])
        loops, power = self._loops(number), self.powers[number]
        leaves = dict.fromkeys([*self.own[number], *(x for m in members for x in self.own[m])])
        scaled = [(leaf, Degree(power / self.exponent[leaf], loops)) for leaf in leaves]
        scaled += [(leaf, d) for leaf, d in layer.bias if self._fits(leaf, members)]
        biases = {leaf for m in members for leaf, _ in self.layers[m].bias}
        several = len(leaves) > 1 and len(members) > 1
        return replace(
            layer,
            scaled=tuple(scaled),
            joined=tuple(sorted(leaves.keys() - biases - {layer.carrier})),
            shared=layer.shared or several or len(loops) < len(layer.lengths),
        )

    def _fits(self, zero: int, members: Sequence[int]) -> bool:
        """Returns whether a bias of zeros serves one class, slice by slice with its weights."""
        users = self.biased[zero]
        loops = {dict(self.layers[n].bias)[zero].loops for n in users}
        alike = loops == {self._loops(n) for n in users}
        return zero in self.zeros and {*users} <= {*members} and alike
