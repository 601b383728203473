"""What rules and handlers see of an evaluation: an equation's view, and the interpreter itself."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from jax.extend import core as jex

from jinit.tracing._jax import bind
from jinit.tracing.structure import Body, Path, Structure

__all__ = ["Entry", "EquationView", "Interpreter", "Reaped", "Region", "Rule"]

Reaped = dict[Path, Any]
"""What rules handed out of an evaluation, by the path of the equation."""


@dataclass
class EquationView:
    """An equation as a rule sees it.

    Attributes:
        equation: The equation of the traced program, with its declared shapes and dtypes.
        path: Where it stands.
        planted: What the caller of ``evaluate`` planted at this path, one iteration's slice of
            it inside a scan; None where nothing was.
        memo: What the rule remembers among the equations of one jaxpr, while it is evaluated:
            values made there are not good elsewhere.
    """

    equation: jex.JaxprEqn
    path: Path
    planted: Any = None
    memo: dict[Any, Any] = field(default_factory=dict)
    _reaped: Reaped = field(default_factory=dict)

    def bind(self, values: Sequence[Any], **params: Any) -> list[Any]:
        """Applies the primitive to values, with some of its parameters replaced."""
        return bind(self.equation, values, {**self.equation.params, **params})

    def reap(self, tree: Any) -> None:
        """Hands a pytree of arrays out of the evaluation; scans stack it along a new axis.

        Nothing comes out of while loops, whose length is unknown, nor out of custom derivatives
        and shard_map, whose results are fixed.
        """
        self.collect({self.path: tree})

    def collect(self, reaped: Reaped) -> None:
        """Adds what was reaped at other paths."""
        self._reaped.update(reaped)


class Rule(Protocol):
    """What to do at an equation that has no sub-jaxprs, or whose sub-jaxprs are not entered.

    Returns the results, or None to run the equation unchanged.
    """

    def __call__(self, view: EquationView, values: Sequence[Any]) -> list[Any] | None:
        """Returns an equation's results at ``values``, or None."""
        ...


class Region(Protocol):
    """Which rule holds inside an equation that is gone into.

    Returns the rule, and the operands that the equation is evaluated with.
    """

    def __call__(
        self, equation: jex.JaxprEqn, values: list[Any], rule: Rule
    ) -> tuple[Rule, list[Any]]:
        """Returns the rule inside, given the one outside, and the operands."""
        ...


@dataclass(frozen=True)
class Entry:
    """A higher-order equation that an evaluation goes into.

    Attributes:
        equation: The equation.
        structure: What it is made of.
        values: Its operands.
        planted: What was planted in the program.
        path: Where it stands.
    """

    equation: jex.JaxprEqn
    structure: Structure
    values: Sequence[Any]
    planted: Mapping[Path, Any]
    path: Path


class Interpreter(Protocol):
    """An evaluation under way, as the handlers of higher-order equations call it back.

    Attributes:
        rule: The rule that sees the equations.
        alike: What else the rule knows of the equations below a call; see ``evaluate``.
        calls: The calls that it has evaluated, by what tells them apart.
    """

    @property
    def rule(self) -> Rule: ...  # noqa: D102

    @property
    def alike(self) -> Callable[[Path], Hashable] | None: ...  # noqa: D102

    @property
    def calls(self) -> dict[Any, Any]: ...  # noqa: D102

    def within_derivative(self, jaxpr: jex.Jaxpr, path: Path) -> "Interpreter":
        """Returns the evaluation of a derivative rule, which goes into everything."""
        ...

    def body(
        self, body: Body, args: Sequence[Any], planted: Mapping[Path, Any], path: Path
    ) -> tuple[list[Any], Reaped]:
        """Evaluates a jaxpr whose equations stand below ``path``."""
        ...
