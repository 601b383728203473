"""Forward dataflow: abstract facts carried through a jaxpr, without running it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from jax.extend import core as jex

from jinit.tracing.structure import Body, Kind, Path, Structure, structure_of
from jinit.tracing.walk import walk

__all__ = ["DataflowRules", "Frame", "propagate"]

Tag = TypeVar("Tag")
Fact = TypeVar("Fact", covariant=True)


@dataclass(frozen=True)
class Frame:
    """An enclosing higher-order equation; ``length`` is a scan's number of iterations."""

    kind: Kind
    length: int = 0


class DataflowRules(Protocol[Tag, Fact]):
    """What a dataflow computes: a tag for every value, a fact for some equations.

    Tags form a lattice of finite height under ``join``: loops are run to their fixed point.
    """

    def literal(self, value: Any) -> Tag:
        """Returns the tag of a literal or a closed-over constant."""
        ...

    def equation(
        self, equation: jex.JaxprEqn, tags: Sequence[Tag], frames: tuple[Frame, ...], path: Path
    ) -> tuple[list[Tag], Fact | None]:
        """Returns the tags of an equation's results and what is to be remembered of it."""
        ...

    def join(self, first: Tag, second: Tag) -> Tag:
        """Returns the tag of a carried value before the first and after a later iteration."""
        ...

    def choose(self, predicate: Tag, tags: Sequence[Tag]) -> Tag:
        """Returns the tag of what a cond produces, given that of each branch."""
        ...

    def shared(self, tag: Tag) -> Tag:
        """Returns the tag of a value that is read more than once, or only on some paths."""
        ...

    def sliced(self, tag: Tag, level: int) -> Tag:
        """Returns the tag of one iteration's slice, ``level`` loops deep, of a scanned value."""
        ...

    def carried(self, tag: Tag, level: int) -> Tag:
        """Returns the tag of what an iteration of a scan, ``level`` loops deep, hands on."""
        ...

    def stacked(self, tag: Tag, level: int) -> Tag:
        """Returns the tag of the values that all iterations of a scan produce."""
        ...


def propagate(
    jaxpr: jex.Jaxpr, tags: Sequence[Tag], rules: DataflowRules[Tag, Fact]
) -> tuple[list[Tag], dict[Path, Fact]]:
    """Carries tags through a jaxpr.

    Args:
        jaxpr: The open jaxpr; its constants are tagged as literals.
        tags: One tag an input.
        rules: What the tags mean.

    Returns:
        The tags of the outputs, and the facts by the path of their equation, in order.
    """
    return _Pass(rules).run(Body(jaxpr, (None,) * len(jaxpr.constvars)), tags, (), ())


def _use_counts(jaxpr: jex.Jaxpr) -> Mapping[Any, int]:
    counts: dict[Any, int] = {}
    for atoms in (*(equation.invars for equation in jaxpr.eqns), jaxpr.outvars):
        for atom in atoms:
            if not isinstance(atom, jex.Literal):
                counts[atom] = counts.get(atom, 0) + 1
    return counts


class _Pass(Generic[Tag, Fact]):
    def __init__(self, rules: DataflowRules[Tag, Fact]) -> None:
        self.rules = rules

    def run(
        self, body: Body, tags: Sequence[Tag], frames: tuple[Frame, ...], path: Path
    ) -> tuple[list[Tag], dict[Path, Fact]]:
        jaxpr, uses = body.jaxpr, _use_counts(body.jaxpr)
        facts: dict[Path, Fact] = {}

        def defined(variables: Sequence[Any], tags: Sequence[Tag]) -> list[Tag]:
            return [
                self.rules.shared(tag) if uses.get(variable, 0) > 1 else tag
                for variable, tag in zip(variables, tags, strict=True)
            ]

        def step(index: int, equation: jex.JaxprEqn, operands: list[Tag]) -> list[Tag]:
            results, found = self.equation(equation, operands, frames, (*path, index))
            facts.update(found)
            return defined(equation.outvars, results)

        def literal(atom: Any) -> Tag:
            return self.rules.literal(atom.val)

        consts = [self.rules.literal(None) for _ in jaxpr.constvars]
        inputs = defined(jaxpr.constvars, consts), defined(jaxpr.invars, tags)
        return walk(jaxpr, *inputs, step, literal), facts

    def equation(
        self, equation: jex.JaxprEqn, tags: list[Tag], frames: tuple[Frame, ...], path: Path
    ) -> tuple[list[Tag], dict[Path, Fact]]:
        structure = structure_of(equation)
        if structure.kind in ("plain", "opaque"):
            results, fact = self.rules.equation(equation, tags, frames, path)
            return results, {} if fact is None else {path: fact}
        inside = (*frames, Frame(structure.kind, structure.length))
        if structure.kind == "scan":
            return self.scan(structure, tags, inside, path)
        if structure.kind == "while":
            return self.while_loop(structure, tags, inside, path)
        if structure.kind == "cond":
            return self.cond(structure, tags, inside, path)
        return self.run(structure.bodies[0], tags, inside, path)

    def fixed_point(self, body: Body, consts, carry, rest, frames, path):
        # Each round only joins more into the carry, and the lattice is of finite height. What the
        # last round found holds for every iteration, the first one included.
        while True:
            results, facts = self.run(body, [*consts, *carry, *rest], frames, path)
            after = _handed_on(self.rules, results[: len(carry)], frames)
            joined = [self.rules.join(*pair) for pair in zip(carry, after, strict=True)]
            if joined == carry:
                return results, facts
            carry = joined

    def scan(self, structure: Structure, tags, frames, path):
        consts, carry, xs = _split(tags, structure.num_consts, structure.num_carry)
        level = _level(frames)
        slices = [self.rules.sliced(tag, level) for tag in xs]
        consts = [self.rules.shared(tag) for tag in consts]  # read in every iteration
        carry = [self.rules.shared(tag) for tag in carry]
        results, facts = self.fixed_point(structure.bodies[0], consts, carry, slices, frames, path)
        carried = _handed_on(self.rules, results[: len(carry)], frames)
        carried = [self.rules.shared(tag) for tag in carried]
        return carried + [self.rules.stacked(tag, level) for tag in results[len(carry) :]], facts

    def while_loop(self, structure: Structure, tags, frames, path):
        condition, body = structure.bodies
        num_body = len(tags) - structure.num_consts - structure.num_carry
        tested, consts, carry = _split(tags, structure.num_consts, num_body)
        carry = [self.rules.shared(tag) for tag in carry]
        results, facts = self.fixed_point(body, consts, carry, [], frames, (*path, 1))
        results = [self.rules.shared(tag) for tag in results]
        _, more = self.run(condition, [*tested, *results], frames, (*path, 0))
        return results, {**more, **facts}

    def cond(self, structure: Structure, tags, frames, path):
        predicate, operands = tags[0], [self.rules.shared(tag) for tag in tags[1:]]
        branches = [
            self.run(body, operands, frames, (*path, index))
            for index, body in enumerate(structure.bodies)
        ]
        facts = {key: fact for _, found in branches for key, fact in found.items()}
        choices = zip(*(results for results, _ in branches), strict=True)
        return [self.rules.choose(predicate, tags) for tags in choices], facts


def _level(frames: tuple[Frame, ...]) -> int:
    """Counts the scans around the innermost one."""
    return sum(frame.kind == "scan" for frame in frames) - 1


def _handed_on(
    rules: DataflowRules[Tag, Any], tags: list[Tag], frames: tuple[Frame, ...]
) -> list[Tag]:
    """Returns the tags of a loop's carry after an iteration."""
    if frames[-1].kind != "scan":
        return tags
    return [rules.carried(tag, _level(frames)) for tag in tags]


def _split(values: list[Any], first: int, second: int) -> tuple[list[Any], list[Any], list[Any]]:
    return values[:first], values[first : first + second], values[first + second :]
