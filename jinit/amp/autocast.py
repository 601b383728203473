"""Op-level casts of functions and modules: products in half, sensitive operations in float32."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np

from jinit._known import known_arguments
from jinit.amp.arguments import check_function, shown
from jinit.amp.autocast_function import Autocast
from jinit.amp.casting.dtypes import BFLOAT16
from jinit.amp.casting.op_lists import OPS, OpLists
from jinit.amp.levels import parse_ops, resolve_half_dtype
from jinit.amp.models.module_class import is_module, module_at
from jinit.amp.policy import Policy, opt_levels
from jinit.typing import HalfDType

__all__ = ["autocast"]

P = ParamSpec("P")
R = TypeVar("R")


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
    if is_module(fn):
        return _module_under(fn, policy, half_dtype, ops)
    if half_dtype is None:
        half_dtype = BFLOAT16 if policy is None else policy.half_dtype
    if ops is None:
        ops = OPS if policy is None else policy.ops
    half = resolve_half_dtype(half_dtype)
    return Autocast(fn, half, _parse_argnums(params_argnums), parse_ops("ops", ops))


def _module_under(module: Any, policy: Policy | None, half_dtype: Any, ops: Any) -> Any:
    """Returns a copy of a module that calls under autocast: the module at O1."""
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
