"""Functions and blocks whose precision the user chooses, marked so that autocast sees them.

A function becomes a jit whose name says how it runs, a block a named scope: both survive
differentiation, vmap and scan, and change nothing where there is no autocast.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any, ParamSpec, TypeVar

import jax
from jax.extend import core as jex

from jinit._known import known_arguments
from jinit.amp.arguments import check_function
from jinit.tracing import Static, partition, scopes_of

__all__ = [
    "casts_disabled",
    "disable_casts",
    "float_function",
    "half_function",
    "promote_function",
    "region_of",
]

P = ParamSpec("P")
R = TypeVar("R")

_DISABLED = "jinit.amp.disable_casts"
_REGION = re.compile(r"jinit\.amp\.((?:half|float|promote)_function)\((.*)\)")


def half_function(fn: Callable[P, R]) -> Callable[P, R]:
    """Lets a function run whole in the half dtype wherever it is called under ``autocast``.

    Its floating arguments are cast to half, and so is every operation in it, whatever its list:
    as if the function were called with half arguments. Operations that have no half version keep
    their dtypes.

    Args:
        fn: A function of pytrees of arrays, which are traced; other arguments are passed on.

    Returns:
        The function. Without autocast it computes what ``fn`` does.

    Raises:
        TypeError: If ``fn`` is not a function.

    Example:
        >>> import jax.numpy as jnp
        >>> from jinit import amp
        >>> @amp.half_function
        ... def gate(x):
        ...     return jnp.exp(x)
        >>> program = str(jax.make_jaxpr(amp.autocast(gate))(jnp.ones(2)))
        >>> "bf16[2] = exp" in program
        True

    Source:
        NVIDIA apex's ``amp.half_function``. There the functions that ``fn`` calls may still be
        cast one by one; here the decoration holds for all of its body.
    """
    return _region("half_function", fn)


def float_function(fn: Callable[P, R]) -> Callable[P, R]:
    """Lets a function run whole in float32 wherever it is called under ``autocast``.

    Args:
        fn: As for ``half_function``.

    Returns:
        The function. Without autocast it computes what ``fn`` does.

    Raises:
        TypeError: If ``fn`` is not a function.

    Example:
        >>> import jax.numpy as jnp
        >>> from jinit import amp
        >>> router = amp.float_function(lambda x, w: x @ w)
        >>> program = str(jax.make_jaxpr(amp.autocast(router))(jnp.ones((2, 2)), jnp.ones((2, 2))))
        >>> "f32[2,2] = dot_general" in program
        True

    Source:
        NVIDIA apex's ``amp.float_function``.
    """
    return _region("float_function", fn)


def promote_function(fn: Callable[P, R]) -> Callable[P, R]:
    """Lets a function run whole in the widest dtype of its arguments under ``autocast``.

    Every floating argument votes, parameters as well; Python numbers do not.

    Args:
        fn: As for ``half_function``.

    Returns:
        The function. Without autocast it computes what ``fn`` does.

    Raises:
        TypeError: If ``fn`` is not a function.

    Example:
        >>> import jax.numpy as jnp
        >>> from jinit import amp
        >>> scale = amp.promote_function(lambda x: jnp.exp(x))
        >>> program = str(jax.make_jaxpr(amp.autocast(lambda x: scale(x @ x)))(jnp.ones((2, 2))))
        >>> "bf16[2,2] = exp" in program
        True

    Source:
        NVIDIA apex's ``amp.promote_function``.
    """
    return _region("promote_function", fn)


@known_arguments
@contextlib.contextmanager
def disable_casts() -> Iterator[None]:
    """Switches autocast off for a block, or for a function that it decorates.

    What is traced inside runs in the dtypes that the program declares, as if there were no
    autocast; the functions that are called there as well, decorated or not.

    Returns:
        A context manager, which is a decorator too.

    Example:
        >>> import jax.numpy as jnp
        >>> from jinit import amp
        >>> def fn(w, x):
        ...     with amp.disable_casts():
        ...         return x @ w
        >>> program = str(jax.make_jaxpr(amp.autocast(fn))(jnp.ones((2, 2)), jnp.ones((2, 2))))
        >>> "bf16" in program
        False

    Source:
        NVIDIA apex's ``amp.disable_casts``.
    """
    with jax.named_scope(_DISABLED):
        yield


def casts_disabled(equation: jex.JaxprEqn) -> bool:
    """Returns whether an equation was traced inside ``disable_casts``."""
    return _DISABLED in scopes_of(equation)


def region_of(
    equation: jex.JaxprEqn, float32_calls: Collection[str] = ()
) -> tuple[str, str] | None:
    """Returns the decorator and the name of a decorated function that an equation calls.

    Args:
        equation: The equation.
        float32_calls: The names of functions that count as decorated with ``float_function``.
    """
    name = equation.params.get("name")
    if not isinstance(name, str):
        return None
    if name in float32_calls:
        return "float_function", name
    found = _REGION.fullmatch(name)
    return (found[1], found[2]) if found else None


def _region(kind: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    check_function(kind, fn)

    def filled(static: Static, values: list[Any]) -> Any:
        args, kwargs = static.fill(values)
        return fn(*args, **kwargs)

    filled.__name__ = f"jinit.amp.{kind}({getattr(fn, '__name__', type(fn).__name__)})"
    jitted = jax.jit(filled, static_argnums=0)

    @functools.wraps(fn)
    def marked(*args: Any, **kwargs: Any) -> Any:
        static, values = partition((args, kwargs))
        if static.hashable:
            return jitted(static, values)
        once = functools.wraps(filled)(functools.partial(filled, static))
        return jax.jit(once)(values)

    return marked
