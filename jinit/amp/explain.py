"""Says which operations of a function run in which dtype, and why."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jinit._plain import PlainData
from jinit._tables import format_table
from jinit.amp.apply import MixedPrecisionApply, function_name
from jinit.amp.arguments import check_function
from jinit.amp.autocast import autocast
from jinit.amp.autocast_function import Autocast
from jinit.amp.casting.autocast_rule import Decision, Record
from jinit.amp.models.module_class import apply_of
from jinit.modules.nnx_calls import Apart, call, is_object, on_objects
from jinit.tracing import (
    ARRAYS,
    EquationView,
    Path,
    aval_of,
    evaluate,
    partition,
    source_line,
    trace,
)
from jinit.typing import PyTree

__all__ = ["ExplainedOp", "Explanation", "explain"]


@dataclass(frozen=True)
class ExplainedOp:
    """One kind of operation at one line.

    Attributes:
        op: The primitive.
        dtype: What its floating operands are when it runs.
        why: The list, the promotion or the user's mark that decided it: ``half list``,
            ``float32 list``, ``promote (...)``, ``match``, ``declared list``, ``not entered``,
            ``half_function f``, ``disable_casts``.
        source: The user's file, line and function.
        count: How many equations of the program; one in a loop counts once.
    """

    op: str
    dtype: str
    why: str
    source: str
    count: int


@dataclass(frozen=True, repr=False)
class Explanation(PlainData):
    """What autocast makes of a function. Printed it is a table.

    Attributes:
        function: Its name.
        half_dtype: The half dtype.
        operations: One row an operation, dtype, reason and line, in the program's order.
    """

    function: str
    half_dtype: str
    operations: tuple[ExplainedOp, ...]

    def counts(self) -> dict[str, int]:
        """Returns the number of operations by the dtype that they run in."""
        total: Counter[str] = Counter()
        for row in self.operations:
            total[row.dtype] += row.count
        return dict(total)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} in {dtype}" for dtype, count in self.counts().items())
        return f"<{self.function} with {self.half_dtype}: operations {counts or 'none'}>"

    def __str__(self) -> str:
        cells = [[r.op, r.dtype, r.why, r.source, str(r.count)] for r in self.operations]
        columns = ["operation", "runs in", "why", "at", ">count"]
        return format_table(columns, cells, title=repr(self)[1:-1])


def explain(fn: Callable[..., Any], *args: PyTree, **kwargs: PyTree) -> Explanation:
    """Returns which operations of a function run in which dtype, and why; nothing is run.

    Operations without a floating operand are left out. To see the backward pass, explain the
    gradient of the function.

    Args:
        fn: What ``autocast`` or ``initialize`` returned, explained as it is; or any function, or
            NNX or Equinox module, explained under ``autocast`` with bfloat16.
        *args: Its arguments; arrays may be given as ``jax.ShapeDtypeStruct``.
        **kwargs: Its keywords, likewise.

    Returns:
        A table when it is printed, and its rows as data.

    Raises:
        TypeError: If ``fn`` is not a function.

    Example:
        >>> import jax.numpy as jnp
        >>> from jinit import amp
        >>> found = amp.explain(lambda w, x: jnp.exp(x @ w), jnp.ones((2, 2)), jnp.ones((2, 2)))
        >>> print(found)  # doctest: +ELLIPSIS
        <lambda> with bfloat16: operations 1 in bfloat16, 1 in float32
          operation     runs in    why            at ... count
         ─...
          dot_general   bfloat16   half list      ...       1
          exp           float32    float32 list   ...       1
        >>> found.counts()
        {'bfloat16': 1, 'float32': 1}
    """
    check_function("explain", fn)
    fn, given = apply_of(fn, args)
    rows: dict[Path, tuple[str, str, str, str]] = {}
    name, half, run = _runner(fn, functools.partial(_note, rows))
    _evaluate_shapes(run, given, kwargs)
    operations = tuple(ExplainedOp(*row, count) for row, count in Counter(rows.values()).items())
    return Explanation(name, str(half), operations)


def _evaluate_shapes(run: Callable[[Apart], Any], args: Sequence[Any], kwargs: Any) -> None:
    """Evaluates a function of arguments taken apart, with copies of NNX's objects."""
    if any(map(is_object, jax.tree.leaves((args, kwargs), is_leaf=is_object))):
        from flax import nnx

        args, kwargs = nnx.clone((args, kwargs))

    def shapes(apart: Apart) -> Any:
        static, values = partition(apart, (*ARRAYS, jax.ShapeDtypeStruct))
        return jax.eval_shape(lambda values: run(static.fill(values)), values)

    on_objects(shapes, args, kwargs)


def _runner(fn: Callable[..., Any], record: Record) -> tuple[str, Any, Callable[[Apart], Any]]:
    """Returns a function's name, its half dtype, and the function that records how it runs."""
    if isinstance(fn, MixedPrecisionApply):
        level = fn.policy.opt_level
        run = functools.partial(fn.run_apart, wrap=lambda f: _recorded(f, record, level))
        return repr(fn)[1:-1].split(" with ")[0], fn.policy.half_dtype, run
    cast = fn if isinstance(fn, Autocast) else autocast(fn)
    name = function_name(cast.fn).split("<locals>.")[-1]
    return name, cast.half_dtype, _recorded(cast, record, "O1")


def _recorded(fn: Callable[..., Any], record: Record, opt_level: str) -> Callable[[Apart], Any]:
    decision = Decision("declared", f"{opt_level} casts the function's inputs")

    def observe(view: EquationView, values: Sequence[Any]) -> None:
        record(view, values, decision)

    def run(apart: Apart) -> Any:
        static, values = partition(apart)
        if isinstance(fn, Autocast):
            return fn.evaluate(static, values, record)
        traced = trace(lambda values: call(fn, static.fill(values)), values)
        outputs, _ = evaluate(traced.jaxpr, traced.consts, values, observe)
        return traced.unflatten(outputs)

    return run


def _note(
    rows: dict[Path, tuple[str, str, str, str]],
    view: EquationView,
    values: Sequence[Any],
    decision: Decision,
) -> None:
    """Keeps what was decided on an equation, unless it has no floating operand or vanishes."""
    equation = view.equation
    declared = decision.target == "declared"
    typed = [aval_of(atom) for atom in equation.invars] if declared else values
    dtypes = [getattr(x, "dtype", None) or jnp.result_type(x) for x in typed]
    floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]
    if decision.target == "dropped" or not floats:
        return
    named = floats if isinstance(decision.target, str) else [decision.target]
    dtype = " and ".join(dict.fromkeys(str(dtype) for dtype in named))
    rows[view.path] = equation.primitive.name, dtype, decision.why, source_line(equation)
