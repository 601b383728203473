"""Evaluation of a jaxpr under a rule that sees, and may replace, its equations."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex

from jinit.tracing._jax import (
    bind,
    equation_context,
    has_explicit_sharding,
    pad_jit_params,
)
from jinit.tracing.structure import Body, Path, Structure, structure_of

__all__ = ["EquationView", "Rule", "evaluate"]

Reaped = dict[Path, Any]


@dataclass
class EquationView:
    """An equation as a rule sees it.

    Attributes:
        equation: The equation of the traced program, with its declared shapes and dtypes.
        path: Where it stands.
        planted: What the caller of ``evaluate`` planted at this path, one iteration's slice of
            it inside a scan; None where nothing was.
    """

    equation: jex.JaxprEqn
    path: Path
    planted: Any = None
    _reaped: Reaped = field(default_factory=dict)

    def bind(self, values: Sequence[Any], **params: Any) -> list[Any]:
        """Applies the primitive to values, with some of its parameters replaced."""
        return bind(self.equation, values, {**self.equation.params, **params})

    def reap(self, tree: Any) -> None:
        """Hands a pytree of arrays out of the evaluation; scans stack it along a new axis."""
        self._reaped[self.path] = tree


class Rule(Protocol):
    """What to do at an equation that has no sub-jaxprs, or whose sub-jaxprs are not entered.

    Returns the results, or None to run the equation unchanged.
    """

    def __call__(self, view: EquationView, values: Sequence[Any]) -> list[Any] | None:
        """Returns an equation's results at ``values``, or None."""
        ...


def evaluate(
    jaxpr: jex.Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    rule: Rule,
    *,
    planted: Mapping[Path, Any] | None = None,
    enter: Collection[Path] | None = None,
) -> tuple[list[Any], Reaped]:
    """Runs a jaxpr, handing every equation to a rule.

    A rule may change dtypes: loops and branches get back those that the program declared, and
    so does every equation that the rule leaves alone.

    Args:
        jaxpr: The open jaxpr.
        consts: Its constants.
        args: Its inputs.
        rule: Called for each equation; see ``Rule``.
        planted: Pytrees of arrays to hand in, by the path of an equation, with a leading axis
            for every enclosing scan.
        enter: The paths of equations whose sub-jaxprs the rule is to see; None for all that
            can be entered. The others run as one equation.

    Returns:
        The outputs, and what the rule reaped, by path; inside scans it is stacked, and in the
        branches of a cond that were not taken it is zero.
    """
    chosen = None if enter is None else frozenset(enter)
    run = _Run(rule, chosen)
    return run.body(Body(jaxpr, tuple(consts)), list(args), dict(planted or {}), ())


def _cast_back(values: Sequence[Any], declared: Sequence[Any]) -> list[Any]:
    """Casts values that a rule left in another float dtype back to the declared one."""
    return [
        lax.convert_element_type(value, aval.dtype)
        if jnp.issubdtype(getattr(aval, "dtype", jnp.int32), jnp.floating)
        and jnp.result_type(value) != aval.dtype
        else value
        for value, aval in zip(values, declared, strict=True)
    ]


def _avals(atoms: Sequence[Any]) -> list[Any]:
    return [atom.aval for atom in atoms]


def _below(planted: Mapping[Path, Any], path: Path) -> dict[Path, Any]:
    return {key: tree for key, tree in planted.items() if key[: len(path)] == path}


@dataclass(frozen=True)
class _Run:
    rule: Rule
    chosen: frozenset[Path] | None

    def body(
        self, body: Body, args: Sequence[Any], planted: dict[Path, Any], path: Path
    ) -> tuple[list[Any], Reaped]:
        env: dict[Any, Any] = dict(zip(body.jaxpr.constvars, body.consts, strict=True))
        env.update(zip(body.jaxpr.invars, args, strict=True))
        reaped: Reaped = {}

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, jex.Literal) else env[atom]

        for index, equation in enumerate(body.jaxpr.eqns):
            values = [read(atom) for atom in equation.invars]
            with equation_context(equation):
                results = self.equation(equation, values, planted, (*path, index), reaped)
            env.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in body.jaxpr.outvars], reaped

    def equation(
        self,
        equation: jex.JaxprEqn,
        values: list[Any],
        planted: dict[Path, Any],
        path: Path,
        reaped: Reaped,
    ) -> list[Any]:
        structure = structure_of(equation)
        handler = _HANDLERS.get(structure.kind)
        if handler is not None and (self.chosen is None or path in self.chosen):
            results, inner = handler(self, equation, structure, values, _below(planted, path), path)
            reaped.update(inner)
            return results
        view = EquationView(equation, path, planted.get(path), reaped)
        results = self.rule(view, values)
        return (
            view.bind(_cast_back(values, _avals(equation.invars))) if results is None else results
        )


def _jit(run: _Run, equation, structure: Structure, values, planted, path):
    """Inlines a jit; one that pins shardings is bound again around its new jaxpr."""
    (body,) = structure.bodies
    if "in_shardings" not in equation.params or not has_explicit_sharding(equation.params):
        return run.body(body, values, planted, path)
    extra, tree = jax.tree.flatten(planted)

    def inner(*args):
        given = jax.tree.unflatten(tree, args[len(values) :])
        outputs, reaped = run.body(body, args[: len(values)], given, path)
        return [*outputs, *jax.tree.leaves(reaped)], jax.tree.structure(reaped)

    return _rebind(equation, inner, values, extra)


def _rebind(equation, inner, values, extra):
    trees = []

    def flat(*args):
        outputs, tree = inner(*args)
        trees.append(tree)
        return outputs

    jaxpr = jax.make_jaxpr(flat)(*values, *extra)
    num_outputs = len(equation.outvars)
    more = len(jaxpr.out_avals) - num_outputs
    params = pad_jit_params(equation.params, jaxpr, len(extra), more)
    results = bind(equation, [*values, *extra], params)
    return results[:num_outputs], jax.tree.unflatten(trees[-1], results[num_outputs:])


def _remat(run: _Run, equation, structure: Structure, values, planted, path):
    def inner(values, planted):
        return run.body(structure.bodies[0], values, planted, path)

    params = equation.params
    inner = jax.checkpoint(inner, policy=params["policy"], prevent_cse=params["prevent_cse"])
    return inner(values, planted)


def _scan(run: _Run, equation, structure: Structure, values, planted, path):
    body, params = structure.bodies[0], equation.params
    values = _cast_back(values, _avals(equation.invars))
    first, second = structure.num_consts, structure.num_consts + structure.num_carry
    consts, carry, xs = values[:first], values[first:second], values[second:]

    def step(carry, sliced):
        xs, planted = sliced
        outputs, reaped = run.body(body, [*consts, *carry, *xs], planted, path)
        outputs = _cast_back(outputs, _avals(body.jaxpr.outvars))
        return outputs[: len(carry)], (outputs[len(carry) :], reaped)

    carry, (ys, reaped) = lax.scan(
        step,
        carry,
        (xs, planted),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *ys], reaped


def _while(run: _Run, equation, structure: Structure, values, planted, path):
    """Enters a while loop; nothing can be reaped from it, since its length is unknown."""
    condition, body = structure.bodies
    values = _cast_back(values, _avals(equation.invars))
    num_body = len(values) - structure.num_consts - structure.num_carry
    tested, rest = values[: structure.num_consts], values[structure.num_consts :]

    def test(carry):
        return run.body(condition, [*tested, *carry], {}, (*path, 0))[0][0]

    def step(carry):
        outputs, _ = run.body(body, [*rest[:num_body], *carry], {}, (*path, 1))
        outputs = _cast_back(outputs, _avals(body.jaxpr.outvars))
        # a loop under vmap has a predicate an example, and stops where all have
        going = test(carry)
        return outputs if going.ndim == 0 else _where(going, outputs, carry)

    return lax.while_loop(lambda carry: jnp.any(test(carry)), step, rest[num_body:]), {}


def _where(going: jax.Array, new: Sequence[Any], old: Sequence[Any]) -> list[Any]:
    """Selects example by example along the leading axis."""
    return [
        jnp.where(going.reshape(going.shape + (1,) * (n.ndim - going.ndim)), n, o)
        for n, o in zip(new, old, strict=True)
    ]


def _cond(run: _Run, equation, structure: Structure, values, planted, path):
    operands = _cast_back(values[1:], _avals(equation.invars[1:]))

    def branch(index, body):
        def taken(operands):
            outputs, reaped = run.body(body, operands, planted, (*path, index))
            return _cast_back(outputs, _avals(body.jaxpr.outvars)), reaped

        return taken

    branches = [branch(index, body) for index, body in enumerate(structure.bodies)]
    shapes = [jax.eval_shape(taken, operands)[1] for taken in branches]
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), {k: t for shape in shapes for k, t in shape.items()}
    )

    def padded(taken):
        def run_branch(operands):
            outputs, reaped = taken(operands)
            return outputs, {**zeros, **reaped}

        return run_branch

    return lax.switch(values[0], [padded(taken) for taken in branches], operands)


def _custom_jvp(run: _Run, equation, structure: Structure, values, planted, path):
    """Keeps the derivative rule: it is traced, and evaluated under the rule as well.

    Its equations stand below ``path + (-1,)``, apart from those of the primal function.
    """
    declared = _avals(equation.invars)

    def original(*args):
        return bind(equation, args, equation.params)

    def entered(*args):
        return run.body(structure.bodies[0], args, {}, path)[0]

    primal = jax.custom_jvp(entered)

    @primal.defjvp
    def rule(primals, directions):
        # traced from the values themselves, which carry their sharding and varying axes
        example = tuple(_cast_back(primals, declared)), tuple(_cast_back(directions, declared))
        derivative = jax.make_jaxpr(lambda p, t: jax.jvp(original, p, t))(*example)
        flat = Body(derivative.jaxpr, tuple(derivative.consts))
        outputs, _ = _Run(run.rule, None).body(flat, [*primals, *directions], {}, (*path, -1))
        results = primal(*primals)
        return results, _cast_back(outputs[len(results) :], [jax.typeof(r) for r in results])

    return primal(*values), {}


_HANDLERS = {
    "jit": _jit,
    "remat": _remat,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "custom_jvp": _custom_jvp,
}
