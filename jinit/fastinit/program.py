"""An initialization as a program: traced once, without what its results do not depend on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from jinit._trees import leaf_paths, parameter_path
from jinit.modules.nnx_calls import Apart, Returned, call
from jinit.tracing import ARRAYS_OR_SHAPES, Static, aval_of, equations_of, partition, trace
from jinit.tracing._jax import without_unused
from jinit.tracing.rolling.fingerprint import Fingerprints

__all__ = ["InitProgram", "LeafSpec", "Slot", "trace_init"]


class Slot(int):
    """The number of a leaf, in the leaf's place."""


@dataclass(frozen=True)
class LeafSpec:
    """An array that an initialization returns.

    Attributes:
        path: Its path in the result.
        shape: Its shape.
        dtype: Its dtype.
        constraint: The sharding that the program itself asks for, or None.
        weak_type: Whether it gives way to other dtypes, as Python's numbers do.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    constraint: Any = None
    weak_type: bool = False


@dataclass(frozen=True)
class InitProgram:
    """A traced initialization.

    Attributes:
        jaxpr: The program.
        consts: The arrays that it closed over.
        used: Which of the arguments' arrays it depends on.
        leaves: What it returns.
        static: The result without its arrays.
        abstract: The result as its user sees it, with the ``Slot`` of the leaf for every array; of
            an NNX object the state. Leaves that are not in it belong to objects that were given.
        foreign_keys: The generator of a key in it that is not of threefry, or the empty text.
        draws: Whether it draws anything.
        compiled: Programs of leaves, by what they are for.
        fingerprints: What the equations of these are compared by.
    """

    jaxpr: jex.Jaxpr
    consts: Sequence[Any]
    used: tuple[bool, ...]
    leaves: tuple[LeafSpec, ...]
    static: Static
    abstract: Any
    foreign_keys: str
    draws: bool
    compiled: dict[Any, Any] = field(default_factory=dict)
    fingerprints: Fingerprints = field(default_factory=Fingerprints)

    @property
    def size(self) -> int:
        """How many numbers it returns."""
        return sum(math.prod(leaf.shape) for leaf in self.leaves)

    @property
    def has_effects(self) -> bool:
        """Whether it prints, calls back, or does anything beside computing its results."""
        return bool(self.jaxpr.effects)

    def run(self, arrays: Sequence[Any]) -> list[jax.Array]:
        """Computes all leaves of the arrays that are used."""
        return jex.jaxpr_as_fun(jex.ClosedJaxpr(self.jaxpr, self.consts))(*arrays)


def trace_init(init_fn: Callable[..., Any], apart: Apart) -> InitProgram:
    """Traces an initialization at the shapes of its arguments; see ``nnx_calls`` for objects."""
    static, arrays = partition(apart, ARRAYS_OR_SHAPES)
    results: list[Static] = []

    def flat(arrays: Sequence[Any]) -> list[Any]:
        rest, made = partition(call(init_fn, static.fill(arrays)))
        results.append(rest)
        return made

    traced = trace(flat, arrays)
    jaxpr, used = without_unused(traced.jaxpr)
    count = len(traced.out_avals)
    result = results[-1].fill([Slot(number) for number in range(count)])
    abstract = result.with_states(len(apart.parts)) if isinstance(result, Returned) else result
    leaves = tuple(
        LeafSpec(path, aval.shape, aval.dtype, constraint, getattr(aval, "weak_type", False))
        for path, aval, constraint in zip(
            _paths(result, abstract, count), traced.out_avals, _constraints(jaxpr), strict=True
        )
    )
    equations = list(equations_of(jaxpr))
    return InitProgram(
        jaxpr,
        traced.consts,
        tuple(used),
        leaves,
        results[-1],
        abstract,
        foreign_keys=_foreign_keys(jaxpr, equations),
        draws=any(equation.primitive.name == "random_bits" for equation in equations),
    )


def _foreign_keys(jaxpr: jex.Jaxpr, equations: Sequence[jex.JaxprEqn]) -> str:
    """Returns the generator of the first key that is not of threefry; an empty text for none."""
    variables = [*jaxpr.invars, *jaxpr.constvars]
    variables += [variable for equation in equations for variable in equation.outvars]
    for variable in variables:
        dtype = aval_of(variable).dtype
        if jnp.issubdtype(dtype, jax.dtypes.prng_key) and str(dtype) != "key<fry>":
            tag = str(dtype)[4:-1]
            return {"urbg": "unsafe_rbg"}.get(tag, tag)
    return ""


def _constraints(jaxpr: jex.Jaxpr) -> list[Any]:
    """Returns the sharding that each output is constrained to, or that its type has."""
    made_by = {var: equation for equation in jaxpr.eqns for var in equation.outvars}

    def of(atom: Any) -> Any:
        equation = None if isinstance(atom, jex.Literal) else made_by.get(atom)
        if equation is not None and equation.primitive.name == "sharding_constraint":
            return equation.params["sharding"]
        sharding = getattr(aval_of(atom), "sharding", None)
        return sharding if sharding is not None and any(sharding.spec) else None

    return list(map(of, jaxpr.outvars))


def _paths(result: Any, abstract: Any, count: int) -> list[str]:
    """Returns the path of every leaf; one of an object that was given is behind its number."""
    pairs = zip(jax.tree.leaves(abstract), leaf_paths(abstract), strict=True)
    paths: dict[int, str] = {slot: path for slot, path in pairs if isinstance(slot, Slot)}

    def name(path: Any, slot: int) -> int:
        paths.setdefault(slot, "given object " + "/".join(parameter_path(path, None)))
        return slot

    if isinstance(result, Returned):
        result.map_written(name)
    return [paths[number] for number in range(count)]
