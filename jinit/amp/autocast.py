"""Op-level casts: a function run with products in half and sensitive operations in float32."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

import jax
import numpy as np
from jax.extend import core as jex

from jinit._kinds import model_kind
from jinit._known import known_arguments
from jinit.amp.arguments import check_function, shown
from jinit.amp.casting.autocast_rule import Decisions, Record
from jinit.amp.casting.dtypes import BFLOAT16, FLOAT32, cast_to
from jinit.amp.casting.op_lists import OPS, OpLists
from jinit.amp.casting.weak_operands import facts_below, find_tags
from jinit.amp.levels import parse_ops, resolve_half_dtype
from jinit.amp.policy import Policy, opt_levels
from jinit.modules.lost_state import check_states, holds_states
from jinit.modules.nnx_calls import Apart, call, is_object, on_objects
from jinit.tracing import Path, Static, TracedFunction, evaluate, partition, trace
from jinit.typing import HalfDType

__all__ = ["Autocast", "autocast"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")


class Autocast(Generic[P, R]):
    """A function under autocast; see ``autocast``.

    Args:
        fn: The function.
        half_dtype: The half dtype.
        params_argnums: Which positional arguments hold parameters.
        ops: The lists.
    """

    def __init__(
        self,
        fn: Callable[P, R],
        half_dtype: np.dtype,
        params_argnums: Sequence[int],
        ops: OpLists,
    ) -> None:
        self.fn: Callable[..., R] = fn
        self.half_dtype, self.ops = half_dtype, ops
        self.params_argnums = tuple(params_argnums)
        functools.update_wrapper(self, fn, updated=())
        self._jitted = _jit_named_as(fn, self.evaluate)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the function."""
        return on_objects(self.run, args, kwargs)

    def run(self, apart: Apart) -> Any:
        """Calls the function with arguments that were taken apart from NNX's objects."""
        static, values = partition(apart)
        return (self._jitted if static.hashable else self.evaluate)(static, values)

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(
        self: "Autocast[Concatenate[Any, Q], R]", instance: object, owner: type | None = None
    ) -> Callable[Q, R]: ...

    def __get__(self, instance: Any, owner: type | None = None) -> Callable[..., Any]:
        """Binds a decorated method."""
        return self if instance is None else functools.partial(self, instance)

    def evaluate(self, static: Static, values: list[Any], record: Record | None = None) -> Any:
        """Runs the function under its rules.

        Args:
            static: The arguments, an ``Apart``, without their arrays.
            values: The arrays.
            record: Called with every decision, call by call.
        """
        filled = static.fill(values)
        if holds_states(filled):
            check_states(self.fn, filled)
        traced = self.traced(lambda values: call(self.fn, static.fill(values)), values)
        half, args = self.half_dtype, filled.args
        _check_argnums(self.params_argnums, args)
        rules, facts = self.decisions(traced.jaxpr, args, record)
        alike = functools.partial(facts_below, facts, list(facts)) if record is None else None
        outputs, _ = evaluate(
            traced.jaxpr,
            traced.consts,
            values,
            rules.rule,
            alike=alike,
            region=rules.region,
            derivative=rules.derivative,
        )
        pairs = zip(outputs, traced.out_avals, strict=True)
        return traced.unflatten(
            [cast_to(x, a.dtype) if a.dtype in (FLOAT32, half) else x for x, a in pairs]
        )

    def traced(self, fn: Callable[[list[Any]], Any], values: list[Any]) -> TracedFunction:
        """Traces the function at its values."""
        return trace(fn, values)

    def decisions(
        self, jaxpr: jex.Jaxpr, args: Sequence[Any], record: Record | None
    ) -> tuple[Decisions, Mapping[Path, Any]]:
        """Returns the rules of a traced function, and what they know of its equations by path."""
        tags = find_tags(jaxpr, args, self.params_argnums)
        return Decisions(self.ops, self.half_dtype, tags, record), tags


@known_arguments
def autocast(
    fn: Callable[P, R],
    policy: Policy | None = None,
    *,
    half_dtype: HalfDType | None = None,
    params_argnums: int | Sequence[int] = (0,),
    ops: OpLists | None = None,
) -> Autocast[P, R]:
    """Returns ``fn`` with the dtype of every operation chosen anew.

    The function is traced, and its equations run so: products and convolutions in
    ``half_dtype``; exponentials, logarithms, powers, sums and the like in float32; any other
    operation in the widest dtype among its operands, where neither literals nor parameters
    count, so that adding a bias leaves a half product half. It goes into jit, remat, scan,
    while, cond, shard_map, custom_jvp and custom_vjp, and into the user's derivative rules; what
    loops carry, branches and a custom_vjp return, and what ``fn`` returns keep the dtypes that
    it declares. It differentiates and batches as ``fn``, and is jitted: a second call with equal
    shapes traces and compiles nothing. ``explain`` tells what it does to a function.

    Args:
        fn: A function of pytrees of arrays, and of NNX objects, to which it does what it does; or
            an NNX or Equinox module, of which a copy comes back that calls under autocast.
            Leaves of its arguments that are not arrays are
            passed on as they are; a call in which one cannot be hashed is traced anew.
        policy: Gives the half dtype and the lists where they are not given themselves.
        half_dtype: float16 or bfloat16, or ``"fp16"`` or ``"bf16"``, by default bfloat16.
        params_argnums: Which positional arguments hold parameters; of Flax variables only the
            collection ``params`` counts.
        ops: Which operations run in which dtype, by default ``OPS``.

    Returns:
        A function of the same arguments, structure and output dtypes.

    Raises:
        TypeError: If ``fn`` is not a function, or ``policy`` not a policy.
        ValueError: If ``half_dtype`` is another dtype, ``params_argnums`` are not positions, or
            ``ops`` not lists; when called, if ``params_argnums`` name no argument.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> fn = autocast(lambda w, x: jnp.exp(x @ w))
        >>> program = str(jax.make_jaxpr(fn)(jnp.ones((2, 2)), jnp.ones((2, 2))))
        >>> "bf16[2,2] = dot_general" in program, "f32[2,2] = exp" in program
        (True, True)

    Source:
        The lists follow NVIDIA apex's O1. There a function is patched, here it is traced; a cast
        that ``fn`` makes to a dtype it already has is therefore not seen.
    """
    check_function("autocast", fn)
    _check_policy(policy)
    if is_object(fn) or model_kind(fn) == "an Equinox module":
        return _module_under(fn, policy, half_dtype, ops)
    if half_dtype is None:
        half_dtype = BFLOAT16 if policy is None else policy.half_dtype
    if ops is None:
        ops = OPS if policy is None else policy.ops
    half = resolve_half_dtype(half_dtype)
    return Autocast(fn, half, _parse_argnums(params_argnums), parse_ops("ops", ops))


def _module_under(module: Any, policy: Policy | None, half_dtype: Any, ops: Any) -> Any:
    """Returns a copy of a module that calls under autocast: the module at O1."""
    from jinit.amp.module_class import module_at  # which imports this file

    given = opt_levels(BFLOAT16)["O1"] if policy is None else policy
    half = given.half_dtype if half_dtype is None else resolve_half_dtype(half_dtype)
    made = dataclasses.replace(
        opt_levels(half)["O1"], ops=given.ops if ops is None else parse_ops("ops", ops)
    )
    return module_at(module, made)


def _check_policy(policy: Any) -> None:
    if policy is None or isinstance(policy, Policy):
        return
    advice = "write half_dtype=... for a dtype, and amp.initialize for a level"
    if isinstance(getattr(policy, "policy", None), Policy):
        advice = "write its .policy"
    raise TypeError(f"policy must be an amp.Policy, not {shown(policy)}: {advice}")


def _parse_argnums(value: Any) -> tuple[int, ...]:
    numbers = value if isinstance(value, tuple | list) else (value,)
    if not all(
        isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= 0 for n in numbers
    ):
        raise ValueError(
            f"params_argnums must be positions such as 0 or (0, 1), counted from 0, not {value!r}"
        )
    return tuple(map(int, numbers))


def _check_argnums(params_argnums: Sequence[int], args: Sequence[Any]) -> None:
    """Raises ValueError where arguments are given by position, and none of those named."""
    if args and params_argnums and min(params_argnums) >= len(args):
        raise ValueError(
            f"params_argnums={tuple(params_argnums)} names none of the {len(args)} positional "
            "arguments, which are counted from 0"
        )


def _jit_named_as(fn: Callable[..., Any], run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn, updated=())
    def evaluated(static: Static, values: list[Any]) -> Any:
        return run(static, values)

    del evaluated.__wrapped__  # it has the name, and not the arguments: they may all be keywords
    return jax.jit(evaluated, static_argnums=0)
